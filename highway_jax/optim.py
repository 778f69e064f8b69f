"""The optimizer, as a function of hyperparameters that may be traced."""

import optax


def sgd(learning_rate, momentum, decay, steps_per_epoch: int) -> optax.GradientTransformation:
    """SGD with momentum whose learning rate decays exponentially, once an epoch (Section 3.1).

    In epoch e (from 0) the rate is `learning_rate * decay**e`.

    Args:
      learning_rate: the initial rate; a scalar, traced or not, as are the next two.
      momentum: weight of the previous update.
      decay: factor per epoch.
      steps_per_epoch: updates per epoch.
    """

    def rate(step):
        return learning_rate * decay ** (step // steps_per_epoch)

    return optax.sgd(rate, momentum)
