//! Examines the folder for temporary files, where VMMs work, are executed and have their sockets.

use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};

use super::Finding;

/// The longest path of a socket (`sun_path` of `unix(7)`, without the terminating NUL).
const SOCKET_PATH: usize = 107;
/// Length of what is appended to the folder: the longest socket of a VMM that is started for an update
/// has its number in its name.
const ADDED: usize = "/cpr-XXXXXX/qmp-999.sock-api".len();
/// Space in bytes that a run with a few cases at a time may need there.
const ROOM: u64 = 256 << 20;

/// Examines the folder.
pub fn examine() -> Vec<Finding> {
    vec![of_folder(&std::env::temp_dir())]
}

fn of_folder(folder: &Path) -> Finding {
    let topic = "temporary files";
    let name = folder.display();
    if let Err(e) = tempfile::tempdir_in(folder) {
        let advice = "set TMPDIR to a writable folder";
        return Finding::missing(topic, format!("cannot write to {name}: {e}"), advice);
    }
    let length = folder.as_os_str().len();
    if length + ADDED > SOCKET_PATH {
        let seen = format!("{name} has {length} characters: too long for a socket in it");
        let most = SOCKET_PATH - ADDED;
        return Finding::missing(topic, seen, format!("set TMPDIR to at most {most} characters"));
    }
    let Ok(system) = statvfs(folder) else {
        return Finding::good(topic, format!("{name}"));
    };
    if system.flags().contains(FsFlags::ST_NOEXEC) {
        let seen = format!("{name} is mounted noexec");
        let advice = "set TMPDIR to a folder that is not mounted noexec: commands are created and executed there";
        return Finding::missing(topic, seen, advice);
    }
    let room = system.blocks_available() * system.fragment_size();
    let seen = format!("{name}, {} MiB free", room >> 20);
    match room < ROOM {
        true => Finding::limited(topic, seen, format!("free up {} MiB", ROOM >> 20)),
        false => Finding::good(topic, seen),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn reports_an_unusable_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_ne!(of_folder(folder.path()).health, Health::Missing);
        let long = folder.path().join("x".repeat(SOCKET_PATH));
        std::fs::create_dir(&long).unwrap();
        let finding = of_folder(&long);
        assert!(finding.seen.contains("too long for a socket"), "{finding:?}");
        let finding = of_folder(Path::new("/proc/nowhere"));
        assert!(finding.seen.contains("No such file or directory (os error 2)"), "{finding:?}");
        // Mounted noexec on every Linux.
        let finding = of_folder(Path::new("/proc"));
        assert_eq!(finding.health, Health::Missing, "{finding:?}");
    }
}
