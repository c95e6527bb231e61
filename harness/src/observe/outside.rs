//! Finds files that a VMM leaves outside the folder of its case.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A snapshot of the entries of the folders in which programs leave files.
#[derive(Clone, Debug)]
pub struct Outside {
    work: String,
    folders: BTreeSet<PathBuf>,
    entries: BTreeSet<PathBuf>,
}

impl Outside {
    /// Takes a snapshot around the folder `work`, which itself does not count.
    pub fn look(work: &Path) -> Self {
        let folders = [work.parent().map(Path::to_owned), Some(std::env::temp_dir())];
        let folders = folders.into_iter().flatten().chain(["/dev/shm".into(), ".".into()]);
        let name = work.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut outside = Self { work: name, folders: folders.collect(), entries: BTreeSet::new() };
        outside.entries = outside.list();
        outside
    }

    /// Returns the new entries of the VMM `pid` of this case. Other programs use the same folders,
    /// so only entries whose names contain the PID or the name of the case's folder count.
    pub fn new_of(&self, pid: i32) -> Vec<PathBuf> {
        let pid = pid.to_string();
        let ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let numbers = name.split(|c: char| !c.is_ascii_digit());
            name != self.work
                && (name.contains(&self.work) || numbers.into_iter().any(|n| n == pid))
        };
        self.list().difference(&self.entries).filter(|path| ours(path)).cloned().collect()
    }

    fn list(&self) -> BTreeSet<PathBuf> {
        let entries = self.folders.iter().filter_map(|folder| fs::read_dir(folder).ok());
        entries.flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_files_of_the_vmm_count() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| fs::write(folder.path().join(name), "").unwrap();
        fs::create_dir(folder.path().join("cpr-abcdef")).unwrap();
        make("old-4711");
        let outside = Outside::look(&folder.path().join("cpr-abcdef"));
        for name in ["new", "new-47110", "vmm.4711.sock", "cpr-abcdef.lock"] {
            make(name);
        }
        let new = outside.new_of(4711);
        let names: Vec<_> = new.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["cpr-abcdef.lock", "vmm.4711.sock"]);
    }
}
