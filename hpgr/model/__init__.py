"""The networks: HPGR, the baselines HSTU and MTGR, and the attention they share."""
