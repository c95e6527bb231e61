//! System calls without libc, for code that runs on the memory of a process that may have died at
//! any point. Such code must use no lock, allocator or thread-local state, including `errno`.

use std::arch::asm;

use nix::errno::Errno;

/// Makes a system call; missing arguments are zero.
///
/// # Safety
/// As for the call that `number` stands for: pointers among the arguments must be valid for it.
pub unsafe fn call<const N: usize>(number: i64, arguments: [usize; N]) -> Result<usize, Errno> {
    const { assert!(N <= 6, "no system call has more arguments") };
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    let [a, b, c, d, e, f] = all;
    let result: isize;
    // SAFETY: the registers and clobbers are those of the x86-64 system call ABI; what the call does
    // to memory is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    match result {
        -4095..0 => Err(Errno::from_raw(-result as i32)),
        _ => Ok(result as usize),
    }
}

/// Makes an ioctl with a pointer or a number as its argument.
///
/// # Safety
/// As for the ioctl.
pub unsafe fn ioctl(fd: i32, request: u64, argument: usize) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    unsafe { call(libc::SYS_ioctl, [fd as usize, request as usize, argument, 0, 0, 0]) }
}

/// Writes all of `bytes` to a file.
pub fn write_all(fd: i32, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let arguments = [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0];
        // SAFETY: the buffer is `bytes`, which is only read.
        match unsafe { call(libc::SYS_write, arguments) } {
            Ok(0) => return Err(Errno::ENOSPC),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Truncates a file and seeks to its start.
pub fn truncate(fd: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    unsafe {
        call(libc::SYS_ftruncate, [fd as usize, 0, 0, 0, 0, 0])?;
        call(libc::SYS_lseek, [fd as usize, 0, libc::SEEK_SET as usize, 0, 0, 0]).map(drop)
    }
}

/// Sets or clears the descriptor's close-on-exec flag.
pub fn set_close_on_exec(fd: i32, close: bool) -> Result<(), Errno> {
    let flags = if close { libc::FD_CLOEXEC as usize } else { 0 };
    let arguments = [fd as usize, libc::F_SETFD as usize, flags, 0, 0, 0];
    // SAFETY: numbers only.
    unsafe { call(libc::SYS_fcntl, arguments) }.map(drop)
}

/// Makes every descriptor but the first three close-on-exec.
pub fn close_all_on_exec() {
    let flags = libc::CLOSE_RANGE_CLOEXEC as usize;
    // SAFETY: numbers only. Linux has had the flag since 5.11.
    let _ = unsafe { call(libc::SYS_close_range, [3, u32::MAX as usize, flags, 0, 0, 0]) };
}

/// Returns the ID of the calling process.
pub fn process_id() -> i32 {
    // SAFETY: it has no arguments and does not fail.
    unsafe { call(libc::SYS_getpid, [0; 6]) }.map_or(0, |pid| pid as i32)
}

/// Ends this process at once, without any cleanup.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: a number only. It does not return.
        let _ = unsafe { call(libc::SYS_exit_group, [status as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Returns `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let arguments = [libc::CLOCK_MONOTONIC as usize, (&raw mut time) as usize, 0, 0, 0, 0];
    // SAFETY: the kernel fills `time`. It fails only for clocks that do not exist.
    let _ = unsafe { call(libc::SYS_clock_gettime, arguments) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Lets other threads run. Async-signal-safe.
pub fn yield_now() {
    // SAFETY: a system call without arguments.
    let _ = unsafe { call(libc::SYS_sched_yield, [0; 6]) };
}

/// Sleeps as shortly as possible: until the timers of this CPU that were due before have fired.
pub fn sleep_shortly() {
    let short = libc::timespec { tv_sec: 0, tv_nsec: 1 };
    let [get, set] = [libc::PR_GET_TIMERSLACK, libc::PR_SET_TIMERSLACK].map(|what| what as usize);
    // SAFETY: numbers only, and a structure that lives for the call.
    unsafe {
        // With its usual slack, the kernel adds up to 50 microseconds.
        let slack = call(libc::SYS_prctl, [get, 0, 0, 0, 0]);
        if slack.is_ok() {
            let _ = call(libc::SYS_prctl, [set, 1, 0, 0, 0]);
        }
        let _ = call(libc::SYS_nanosleep, [(&raw const short) as usize, 0]);
        if let Ok(slack) = slack {
            let _ = call(libc::SYS_prctl, [set, slack, 0, 0, 0]);
        }
    }
}

/// Waits up to `milliseconds` until a descriptor is readable; returns whether it is.
pub fn readable_within(fd: i32, milliseconds: u32) -> bool {
    let until = monotonic_ns() + u64::from(milliseconds) * 1_000_000;
    loop {
        let left = until.saturating_sub(monotonic_ns());
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let timeout = libc::timespec {
            tv_sec: (left / 1_000_000_000) as i64,
            tv_nsec: (left % 1_000_000_000) as i64,
        };
        let arguments = [(&raw mut poll) as usize, 1, (&raw const timeout) as usize, 0, 8, 0];
        // SAFETY: the structures live for the call; no signal mask is given.
        match unsafe { call(libc::SYS_ppoll, arguments) } {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::EINTR) if left > 0 => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn errors_are_those_of_the_kernel() {
        // SAFETY: numbers only.
        let closed = unsafe { call(libc::SYS_close, [987_654, 0, 0, 0, 0, 0]) };
        assert_eq!(closed, Err(Errno::EBADF));
        assert_eq!(set_close_on_exec(987_654, true), Err(Errno::EBADF));
        assert_eq!(write_all(987_654, b"x"), Err(Errno::EBADF));
    }

    #[test]
    fn wait_ends_on_data_or_timeout() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        assert!(!readable_within(reader.as_raw_fd(), 1));
        write_all(writer.as_raw_fd(), b"x").unwrap();
        assert!(readable_within(reader.as_raw_fd(), 60_000));
    }
}
