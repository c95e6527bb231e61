//! What the kernel sets up when a process executes a program: proof of the exec and of its
//! arguments.

use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::proc_error::ProcError;

/// Tells whether the kernel randomises stack addresses (see the kernel's sysctl documentation).
const RANDOMIZE: &str = "/proc/sys/kernel/randomize_va_space";

/// `ADDR_NO_RANDOMIZE` in `/proc/PID/personality` (`personality(2)`).
const NOT_RANDOM: u32 = 0x0004_0000;

/// A process image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its command line.
    pub words: Vec<String>,
    /// Its auxiliary vector, which holds addresses of the stack that `execve` created.
    pub auxv: Vec<u8>,
    /// Whether the next image's stack will be at another address.
    pub random: bool,
}

impl Image {
    /// Reads the image of process `pid`.
    pub fn of(pid: i32) -> Result<Self, ProcError> {
        let folder = format!("/proc/{pid}");
        let read = |path: &str| fs::read(path).map_err(|e| ProcError::new(Path::new(path), e));
        // Raw: `procfs` drops empty arguments, and the order of the auxiliary vector.
        let words = read(&format!("{folder}/cmdline"))?;
        let words = words.strip_suffix(&[0]).unwrap_or(&words).split(|byte| *byte == 0);
        let auxv = read(&format!("{folder}/auxv"))?;
        if auxv.is_empty() {
            // A process that has ended.
            return Err(ProcError::new(Path::new(&folder), io::ErrorKind::NotFound.into()));
        }
        let personality = read(&format!("{folder}/personality"))?;
        let personality = String::from_utf8_lossy(&personality);
        let personality = u32::from_str_radix(personality.trim(), 16).unwrap_or(0);
        let placed = fs::read_to_string(RANDOMIZE);
        let placed = placed.is_ok_and(|placed| placed.trim() != "0");
        Ok(Self {
            words: words.map(|word| String::from_utf8_lossy(word).into_owned()).collect(),
            auxv,
            random: placed && personality & NOT_RANDOM == 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_image_has_the_command_line() {
        let own = Image::of(std::process::id() as i32).unwrap();
        assert_eq!(own.words, std::env::args().collect::<Vec<_>>());
        assert!(!own.auxv.is_empty());
    }

    #[test]
    fn a_process_that_has_ended_has_no_image() {
        // Above the kernel's `PID_MAX_LIMIT`.
        assert!(Image::of(1 << 23).is_err());
    }
}
