"""Compiled kernels are kept on the node's own disk, where no other user can put any."""

import os

from megatron_remit.launch.node import CACHES, compile_caches


def test_the_ranks_of_a_node_and_the_next_job_share_a_folder_of_this_user(tmp_path):
    first, second = (compile_caches({}, tmp_path) for _ in range(2))
    assert first == second and first.keys() == CACHES.keys()
    for folder in first.values():
        assert folder.startswith(str(tmp_path)) and os.path.isdir(folder)
    (root,) = tmp_path.iterdir()
    assert root.stat().st_mode & 0o777 == 0o700


def test_what_the_user_has_set_stays(tmp_path):
    found = compile_caches({"TRITON_CACHE_DIR": "/scratch/mine", "TORCHINDUCTOR_CACHE_DIR": ""}, tmp_path)
    assert found.keys() == {"TORCHINDUCTOR_CACHE_DIR"}
    both = dict.fromkeys(CACHES, "/scratch/mine")
    assert compile_caches(both, tmp_path / "never made") == {}


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path):
    name = f"megatron-remit-{os.getuid()}"
    (tmp_path / name).mkdir(mode=0o777)
    (tmp_path / name).chmod(0o777)
    found = compile_caches({}, tmp_path)
    assert all(name + os.sep not in folder and os.path.isdir(folder) for folder in found.values())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / name).symlink_to(elsewhere)
    assert all(name + os.sep not in folder for folder in compile_caches({}, tmp_path / "link").values())
