//! The clock that the two processes share.

/// Returns `CLOCK_MONOTONIC`, which exec does not reset, in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("Linux always has this clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}
