"""One room, one file: each measures ours and the peer's in the same run and states its targets."""
