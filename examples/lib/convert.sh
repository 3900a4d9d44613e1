# Hugging Face in and out: a model is imported once for all jobs, the trained one exported. Sourced by cluster.sh.
# shellcheck shell=bash

# import_folder HF: where the import of HF belongs. The name follows the content (path, sizes and times of the files),
# so a model that was replaced in place is imported anew.
import_folder() {
  local hf key
  hf=$(realpath "$1")
  key=$(cd "$hf" && { pwd; find -L . -maxdepth 1 -type f -printf '%f %s %Ts\n' | sort; } | sha256sum | cut -c 1-12)
  echo "$IMPORT_DIR/$(basename "$hf")-$key"
}

# import_once HF OUT: import unless OUT is there. OUT appears whole (the import renames it at the end). The lock keeps
# another job from doing the same work; the kernel drops it when its holder dies, so none is ever left behind.
import_once() {
  local hf=$1 out=$2 lock
  [[ ! -d $out ]] || return 0
  exec {lock}> "$out.lock"
  if ! flock -n "$lock"; then
    say "waiting for another job that imports $hf"
    wait_for_child flock "$lock" ||
      stop_or_die $? "no lock on $out.lock: does the file system of IMPORT_DIR support flock?"
  fi
  if [[ -d $out ]]; then
    say "imported by another job: $out"
  else
    say "importing $hf"
    # What an import that was killed left; no other is under way while the lock is held.
    rm -rf "$out".tmp-*
    wait_for_child step 1 "$PYTHON" "$TOOLS/import_hf.py" --hf "$hf" --out "$out" || stop_or_die $? "no import of $hf"
  fi
  exec {lock}>&-
}

export_once() {
  if [[ -d $RUN_DIR/hf ]]; then return; fi
  say "exporting step $(saved_iteration) to $RUN_DIR/hf"
  wait_for_child step 1 "$PYTHON" "$TOOLS/export_hf.py" --megatron "$RUN_DIR/checkpoints" --hf-template "$BASE/hf" \
    --out "$RUN_DIR/hf" || stop_or_die $? "no export to $RUN_DIR/hf"
}
