"""The networks: HPGR, HSTU, SASRec, MTGR and the attention they share."""
