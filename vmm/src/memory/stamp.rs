//! The time at which a RAM file was last modified: it tells whether a guest has run in it since.
//!
//! A guest's writes through its mapping do not change it on every file system. So the VMM sets it:
//! when a guest is about to run, and again when its state is saved.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// A time of modification: seconds and nanoseconds since 1970, as the file system keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    /// Reads the time of modification of `file`.
    pub fn of(file: &std::fs::File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self { seconds: meta.mtime(), nanoseconds: meta.mtime_nsec() })
    }

    /// Sets the time of modification of `file` to now, and returns it.
    ///
    /// Fails if the file system does not keep nanoseconds. They make each time unique, also after the
    /// clock was set back: the kernel dates the writes of a guest by a clock that ticks a few hundred
    /// times a second.
    pub fn renew(file: &std::fs::File) -> io::Result<Self> {
        let before = Self::of(file)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut now = Self::from(now);
        // Odd, so that coarser times are noticed.
        now.nanoseconds |= 1;
        if now == before {
            now.nanoseconds ^= 2;
        }
        now.set(file)?;
        if Self::of(file)? != now {
            let why = "the file system does not keep times to the nanosecond; use another one";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        Ok(now)
    }

    /// Sets the time of modification of `file` to this. Needs the file's owner, or root.
    pub fn set(self, file: &std::fs::File) -> io::Result<()> {
        let access = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
        let modified = libc::timespec { tv_sec: self.seconds, tv_nsec: self.nanoseconds };
        let times = [access, modified];
        // SAFETY: two structures that outlive the call; the descriptor is open.
        let result = unsafe { libc::futimens(file.as_raw_fd(), times.as_ptr()) };
        Ok(Errno::result(result).map(drop)?)
    }
}

impl From<Duration> for Stamp {
    fn from(since_1970: Duration) -> Self {
        let seconds = since_1970.as_secs() as i64;
        Self { seconds, nanoseconds: since_1970.subsec_nanos().into() }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_timestamp(self.seconds, self.nanoseconds as u32) {
            Some(time) => write!(f, "{time:?}"),
            None => write!(f, "{}.{:09}", self.seconds, self.nanoseconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewed_stamps_differ() {
        let file = tempfile::tempfile().unwrap();
        let mut before = Stamp::of(&file).unwrap();
        for _ in 0..100 {
            let now = Stamp::renew(&file).unwrap();
            assert_ne!(now, before);
            assert_eq!(Stamp::of(&file).unwrap(), now);
            before = now;
        }
    }

    #[test]
    fn stamp_is_shown_as_a_time() {
        let stamp = Stamp { seconds: 1_800_000_000, nanoseconds: 5 };
        insta::assert_snapshot!(stamp, @"2027-01-15T08:00:00.000000005Z");
    }
}
