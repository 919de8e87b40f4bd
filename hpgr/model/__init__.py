"""The networks: HPGR, HSTU and the attention both share."""
