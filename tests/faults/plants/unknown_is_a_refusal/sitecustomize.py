"""A redemption is refused for good while nothing is known of its card."""

from gateway.flows import redeem_points

setattr(redeem_points, "undecided", lambda judged: None)  # noqa: B010
