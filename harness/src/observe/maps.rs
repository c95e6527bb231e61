//! The memory map of a process.

use std::ops::Range;

use procfs::FromRead;
use procfs::process::{MMPermissions, MMapPath, MemoryMap, MemoryMaps};

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
    /// The mapped file; empty if there is none.
    pub path: String,
}

impl From<MemoryMap> for Mapping {
    fn from(map: MemoryMap) -> Self {
        let path = match &map.pathname {
            MMapPath::Path(path) => path.to_string_lossy().into_owned(),
            _ => String::new(),
        };
        Self {
            addresses: map.address.0..map.address.1,
            shared: map.perms.contains(MMPermissions::SHARED),
            writable: map.perms.contains(MMPermissions::WRITE),
            offset: map.offset,
            inode: map.inode,
            path,
        }
    }
}

impl Mapping {
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
    let maps = MemoryMaps::from_file(&path).map_err(|e| ProcError::parsing(path, e))?;
    Ok(maps.into_iter().map(Mapping::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_a_space_in_the_path() {
        let line = "7f00-8f00 rw-s 00001000 00:01 4711                 /memfd:pc.ram (deleted)\n";
        let maps = MemoryMaps::from_read(line.as_bytes()).unwrap();
        assert_eq!(
            maps.into_iter().map(Mapping::from).collect::<Vec<_>>(),
            [Mapping {
                addresses: 0x7f00..0x8f00,
                shared: true,
                writable: true,
                offset: 0x1000,
                inode: 4711,
                path: "/memfd:pc.ram (deleted)".into(),
            }]
        );
    }
}
