"""The networks: HPGR, HSTU, SASRec and the attention they share."""
