//! The memory map of a process.

use std::fs;
use std::ops::Range;

use super::proc_error::ProcError;

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Virtual addresses.
    pub addresses: Range<u64>,
    /// Whether it is shared, not copy-on-write.
    pub shared: bool,
    /// Whether it is writable.
    pub writable: bool,
    /// Offset in the file at which it starts.
    pub offset: u64,
    /// Inode of the file; 0 for anonymous memory.
    pub inode: u64,
    /// The mapped file, or the kernel's name for the mapping.
    pub path: String,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let permissions = words.next()?.as_bytes();
        let offset = u64::from_str_radix(words.next()?, 16).ok()?;
        let _device = words.next()?;
        let inode = words.next()?.parse().ok()?;
        Some(Self {
            addresses: u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?,
            shared: permissions.get(3) == Some(&b's'),
            writable: permissions.get(1) == Some(&b'w'),
            offset,
            inode,
            path: words.next().unwrap_or("").trim().to_owned(),
        })
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.addresses.end - self.addresses.start
    }

    /// Never true: the kernel has no empty mappings.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads all mappings of process `pid`.
pub fn read(pid: i32) -> Result<Vec<Mapping>, ProcError> {
    let path = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&path).map_err(|e| ProcError::new(&path, e))?;
    Ok(text.lines().filter_map(Mapping::parse).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_a_space_in_the_path() {
        let line = "7f00-8f00 rw-s 00001000 00:01 4711                 /memfd:pc.ram (deleted)";
        assert_eq!(
            Mapping::parse(line),
            Some(Mapping {
                addresses: 0x7f00..0x8f00,
                shared: true,
                writable: true,
                offset: 0x1000,
                inode: 4711,
                path: "/memfd:pc.ram (deleted)".into(),
            })
        );
    }
}
