"""tools/score_corpus.py, whose writing rank looks at one row before the other ranks hear from it again."""

from megatron_remit.errors import cli
from megatron_remit.programs.score_corpus import main
from megatron_remit.scoring import scorer

if __name__ == "__main__":
    scorer.SKIP_SECONDS = 0.0
    cli(main)
