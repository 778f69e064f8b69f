"""What counts as a claim that holds: the verdicts, and a number for every word of the paper that has none.

docs/reproduction.md gives the reason for each, and says which results are older than the criteria.
"""

import math
from dataclasses import dataclass

HOLDS, IN_PART, FAILS, UNDECIDED, NOT_RUN = "holds", "holds in part", "does not hold", "undecided", "not run"
VERDICTS = (HOLDS, IN_PART, FAILS, UNDECIDED, NOT_RUN)

# Section 3.1
EPOCHS = 400  # of the paper's Figure 1
VERY_GOOD = 1e-4  # nats; the paper's own bound
SIMILAR = 10.0  # losses are similar up to this factor; beyond it, one is significantly worse
FAR_BETTER = 100.0  # the paper's "2 orders of magnitude"
CONVERGED = 0.01  # nats: a run that gets there has converged
THRESHOLDS = (0.1, 0.01, 0.001)  # nats, at which the speed of convergence is compared
FASTER = 1.5  # times as fast is significantly faster
CHANCE = math.log(10)  # nats: the loss of guessing among ten classes
STALLED = 0.1  # times the loss of guessing: a network that gets below has not stalled

# Sections 3.2 and 3.3
ACCURACY = 0.1  # percentage points of test accuracy below the paper's that still count as reaching it
INITIALIZATIONS = 5  # over which the paper averages
UNTRAINED = 2.0  # times chance: with a test accuracy below this, a network has not learned

# Section 4
FIRST, FIRST_CIFAR100 = 15, 40  # layers that "about the first" means
EARLY, LATE = 14, (15, 45)  # the last early layer; the first and the last late layer
SIGNIFICANT = 3.0  # standard deviations of a count of misclassified images
CLOSE_TO_NO_EFFECT = 0.1  # of the early layers' effect
SPARSE = 0.1  # fraction of the gates that may be open for one image
SUBSTANTIAL = 0.1  # of a gate's range: by how much a class's mean must differ from the overall mean
ROUTED = (0, 7)  # the digits that the paper shows
DIFFERENT = 0.5  # an image opens at most this fraction of the blocks that some images open
IDLE = (0.5, 0.7)  # fractions of the layers that are "about 60%"


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and whether it holds here.

    Attributes:
      section: where the paper makes it.
      words: what it says, nearly in its words.
      verdict: one of `VERDICTS`.
      evidence: the numbers measured here, or why there are none.
    """

    section: str
    words: str
    verdict: str
    evidence: str


Judgement = tuple[str, str]  # a verdict and its evidence


def verdict(holds: bool) -> str:
    """The verdict on a claim that either holds or does not."""
    return HOLDS if holds else FAILS
