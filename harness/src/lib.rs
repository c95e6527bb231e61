//! Proves that a live update of a VMM keeps everything a guest and its operator rely on.
