//! Threads and processes that talk to each other: a wakeup, a byte, a signal or a page that is lost
//! shows as a wrong value, or as no progress.

use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::mem::MaybeUninit;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, getpid};

use crate::finding::Finding;
use crate::part;

/// Messages in a round.
const MESSAGES: u64 = 8;
/// What the partner adds to a message.
const ANSWER: u64 = 0x5151_5151_0000_0000;

/// Two threads that pass a number back and forth, each waking the other.
pub struct Futexes {
    turn: Arc<(Mutex<u64>, Condvar)>,
    expected: u64,
}

impl Futexes {
    /// Starts the partner on vCPU `cpu`.
    pub fn start(cpu: usize) -> io::Result<Self> {
        let turn = Arc::new((Mutex::new(0), Condvar::new()));
        let partner = turn.clone();
        thread::Builder::new().spawn(move || {
            // A partner on another vCPU than wanted is as good.
            let _ = part::pin(cpu);
            loop {
                take_turn(&partner, 1);
            }
        })?;
        Ok(Self { turn, expected: 0 })
    }

    /// Passes the number several times.
    pub fn round(&mut self) -> Result<(), Finding> {
        for _ in 0..MESSAGES {
            let found = take_turn(&self.turn, 0);
            if found != self.expected {
                return Err(Finding::value(self.expected, found, "a number passed by futexes"));
            }
            self.expected += 2;
        }
        Ok(())
    }
}

/// Waits until the number has this parity, adds one and wakes the other; returns what it was.
fn take_turn((number, changed): &(Mutex<u64>, Condvar), parity: u64) -> u64 {
    let number = number.lock().unwrap_or_else(PoisonError::into_inner);
    let number = changed.wait_while(number, |number| *number % 2 != parity);
    let mut number = number.unwrap_or_else(PoisonError::into_inner);
    *number += 1;
    changed.notify_one();
    *number - 1
}

/// Two threads that send each other numbers through pipes.
pub struct Pipes {
    to: PipeWriter,
    from: PipeReader,
    sent: u64,
}

impl Pipes {
    /// Starts the partner on vCPU `cpu`.
    pub fn start(cpu: usize) -> io::Result<Self> {
        let (mut theirs, to) = pipe()?;
        let (from, mut back) = pipe()?;
        thread::Builder::new().spawn(move || {
            // A partner on another vCPU than wanted is as good.
            let _ = part::pin(cpu);
            let mut number = [0; 8];
            while theirs.read_exact(&mut number).is_ok() {
                let answer = u64::from_le_bytes(number) ^ ANSWER;
                if back.write_all(&answer.to_le_bytes()).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { to, from, sent: 0 })
    }

    /// Sends several numbers, then receives the answers.
    pub fn round(&mut self) -> Result<(), Finding> {
        let wrong = |e| Finding::call("talk through a pipe", e);
        let first = self.sent;
        for number in first..first + MESSAGES {
            self.to.write_all(&number.to_le_bytes()).map_err(wrong)?;
        }
        for number in first..first + MESSAGES {
            let mut answer = [0; 8];
            self.from.read_exact(&mut answer).map_err(wrong)?;
            let (expected, found) = (number ^ ANSWER, u64::from_le_bytes(answer));
            if found != expected {
                return Err(Finding::value(expected, found, "a number received from a pipe"));
            }
        }
        self.sent += MESSAGES;
        Ok(())
    }
}

/// Signals that queue: each must arrive once, in order.
pub struct Signals {
    sent: u64,
}

impl Signals {
    /// The number of the signal, which all threads must block.
    pub fn signal() -> i32 {
        libc::SIGRTMIN()
    }

    /// Begins with the first signal.
    pub fn start() -> Self {
        Self { sent: 0 }
    }

    /// Sends several signals to this process, then receives them.
    pub fn round(&mut self) -> Result<(), Finding> {
        let first = self.sent;
        for number in first..first + MESSAGES {
            let value =
                libc::sigval { sival_ptr: std::ptr::without_provenance_mut(number as usize) };
            // SAFETY: the value is a number for the receiver, which is this process.
            let sent = unsafe { libc::sigqueue(getpid().as_raw(), Self::signal(), value) };
            Errno::result(sent).map_err(|e| Finding::call("send a signal", e))?;
        }
        for expected in first..first + MESSAGES {
            let found = receive(Self::signal()).map_err(|e| Finding::call("await a signal", e))?;
            if found != expected {
                return Err(Finding::value(expected, found, "a number sent with a signal"));
            }
        }
        self.sent += MESSAGES;
        Ok(())
    }
}

/// Waits for a signal and returns the number sent with it.
fn receive(signal: i32) -> nix::Result<u64> {
    let mut set = MaybeUninit::uninit();
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: both are valid for the calls, the first of which initializes the set.
    Errno::result(unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::sigwaitinfo(set.as_ptr(), info.as_mut_ptr())
    })?;
    // SAFETY: all bits zero are a valid `siginfo_t`, and the kernel has filled in the value.
    Ok(unsafe { info.assume_init().si_value() }.sival_ptr.addr() as u64)
}

/// Processes, each of which sees its own copy of a page.
pub struct Forks {
    page: Box<[u64; 512]>,
    number: u64,
}

impl Forks {
    /// Begins with the first process.
    pub fn start() -> Self {
        Self { page: Box::new([0; 512]), number: 0 }
    }

    /// Forks a process, which checks and changes its copy, and waits for it.
    pub fn round(&mut self) -> Result<(), Finding> {
        self.number += 1;
        let number = self.number;
        self.page.fill(number);
        let code = (number % 100) as i32;
        // SAFETY: the child calls only `_exit`, and touches nothing but its copy of the page.
        match unsafe { fork() }.map_err(|e| Finding::call("fork", e))? {
            ForkResult::Child => {
                let right = self.page.iter().all(|word| *word == number);
                self.page.fill(0);
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(if std::hint::black_box(right) { code } else { 255 }) }
            }
            ForkResult::Parent { child } => {
                let status = waitpid(child, None).map_err(|e| Finding::call("await a child", e))?;
                judge(status, code)?;
                match std::hint::black_box(&*self.page).iter().find(|word| **word != number) {
                    Some(found) => Err(Finding::value(number, *found, "a word after a fork")),
                    None => Ok(()),
                }
            }
        }
    }
}

fn judge(status: WaitStatus, expected: i32) -> Result<(), Finding> {
    match status {
        WaitStatus::Exited(_, code) if code == expected => Ok(()),
        WaitStatus::Exited(_, 255) => Err(Finding::text("a forked process saw a wrong page")),
        WaitStatus::Exited(_, code) => {
            Err(Finding::value(expected as u64, code as u64, "exit status of a forked process"))
        }
        other => Err(Finding::text(format!("a forked process ended otherwise: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn storms_pass_on_this_host() {
        let (mut futexes, mut pipes) = (Futexes::start(0).unwrap(), Pipes::start(0).unwrap());
        for _ in 0..10 {
            assert_eq!(futexes.round(), Ok(()));
            assert_eq!(pipes.round(), Ok(()));
        }
    }

    #[test]
    fn lost_number_is_noticed() {
        let mut futexes = Futexes::start(0).unwrap();
        futexes.expected = 2;
        assert_eq!(futexes.round().unwrap_err().text, "a number passed by futexes");
        let mut pipes = Pipes::start(0).unwrap();
        pipes.to.write_all(&7_u64.to_le_bytes()).unwrap();
        let finding = pipes.round().unwrap_err();
        assert_eq!((finding.report.expected, finding.report.found), (ANSWER, 7 ^ ANSWER));
    }

    #[test]
    fn child_that_ends_otherwise_is_noticed() {
        let child = Pid::from_raw(9);
        assert_eq!(judge(WaitStatus::Exited(child, 5), 5), Ok(()));
        let text = |status| judge(status, 5).unwrap_err().text;
        assert_eq!(text(WaitStatus::Exited(child, 255)), "a forked process saw a wrong page");
        assert_eq!(text(WaitStatus::Exited(child, 4)), "exit status of a forked process");
        let killed = text(WaitStatus::Signaled(child, Signal::SIGSEGV, false));
        assert!(killed.contains("SIGSEGV"), "{killed}");
    }
}
