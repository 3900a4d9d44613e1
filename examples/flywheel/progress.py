"""Turn Megatron's log on standard input into a progress bar; the whole log goes to the file named as argument."""

import re
import sys

from tqdm import tqdm

STEP = re.compile(r"iteration +(\d+)/ +(\d+) \|.* lm loss: ([-+.\dEe]+)")


def main() -> None:
    bar = None
    with open(sys.argv[1], "w") as log:
        for line in sys.stdin:
            log.write(line)
            log.flush()
            step = STEP.search(line)
            if step:
                bar = bar or tqdm(total=int(step[2]), unit="step", mininterval=2)
                bar.set_postfix_str(f"loss {float(step[3]):.3f} nats/token", refresh=False)
                bar.update(int(step[1]) - bar.n)
            elif "error: " in line:
                print(line, end="", file=sys.stderr)
    if bar:
        bar.close()


if __name__ == "__main__":
    main()
