"""The 一卡通 gateway of 海盐县: social security cards linked to banks, transit, merchants and the 人才码."""

__version__ = "0.1.0"
