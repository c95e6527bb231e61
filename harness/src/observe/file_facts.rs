//! The audit of the files: everything in the folder of a case, and other files that the command
//! line names.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::observe::facts::Facts;
use crate::observe::files::Files;

/// Number of bytes that determine the class of a content.
const HEAD: usize = 8;

/// Reads the facts of the files of a VM in `work`, the folder of its case.
pub fn of_vm(work: &Path, files: &Files) -> Facts {
    let Files { kernel, qmp, serial, serial_socket, log, pid_file, initrd, .. } = files;
    let named = [kernel, qmp, serial, serial_socket, log, pid_file].into_iter().chain(initrd);
    let facts = read(work, named.map(Path::new), &[Path::new(serial), Path::new(log)]);
    // Whichever update the VMM was started for.
    let plain = |(item, value): (&str, &str)| (files.plain_path(item), value.to_owned());
    facts.iter().map(plain).collect()
}

/// Reads the facts of what is in `folder`, and of the files `named` elsewhere. The size of files in
/// `growing` is ignored.
fn read<'a>(folder: &Path, named: impl IntoIterator<Item = &'a Path>, growing: &[&Path]) -> Facts {
    let mut facts = Facts::default();
    walk(folder, folder, growing, &mut facts);
    for path in named {
        if !path.starts_with(folder) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            read_file(&name, path, growing, &mut facts);
        }
    }
    facts
}

fn walk(root: &Path, folder: &Path, growing: &[&Path], facts: &mut Facts) {
    // Skips what is removed meanwhile.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        read_file(&name, &path, growing, facts);
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(root, &path, growing, facts);
        }
    }
}

fn read_file(name: &str, path: &Path, growing: &[&Path], facts: &mut Facts) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    facts.insert(format!("{name} mode"), format!("{:o}", meta.mode() & 0o7777));
    facts.insert(format!("{name} owner"), format!("{}:{}", meta.uid(), meta.gid()));
    let kind = kind(path, &meta, !growing.contains(&path));
    facts.insert(name, kind.unwrap_or_else(|_| "unreadable".to_owned()));
}

fn kind(path: &Path, meta: &Metadata, sized: bool) -> io::Result<String> {
    let kind = meta.file_type();
    let links = match meta.nlink() {
        1 => String::new(),
        n => format!(", {n} links"),
    };
    Ok(match () {
        () if kind.is_symlink() => format!("a link to {}", fs::read_link(path)?.display()),
        () if kind.is_dir() => "a directory".to_owned(),
        () if kind.is_socket() => format!("a socket{links}"),
        () if kind.is_fifo() => format!("a FIFO{links}"),
        () if kind.is_file() && sized => {
            format!("{} of {} bytes{links}", class(path)?, meta.len())
        }
        () if kind.is_file() => format!("a file{links}"),
        () => "a device".to_owned(),
    })
}

fn class(path: &Path) -> io::Result<String> {
    let mut head = Vec::new();
    File::open(path)?.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(match &head[..] {
        [] => "an empty file".to_owned(),
        [0x7f, b'E', b'L', b'F', ..] => "a program".to_owned(),
        [b'#', b'!', ..] => "a script".to_owned(),
        // The magic of our state files and of QEMU's.
        [b'C', b'P', b'R', ..] | [b'Q', b'E', b'V', b'M', ..] => "a state".to_owned(),
        head if head.iter().all(|byte| byte.is_ascii_digit() || *byte == b'\n') => {
            "a number".to_owned()
        }
        head if head.is_ascii() && !head.contains(&0) => "a text".to_owned(),
        _ => "data".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn reads_every_file_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("sub")).unwrap();
        for (name, content) in [("pid", "17\n"), ("sub/state", "CPRSTATE"), ("log", "x"), ("e", "")]
        {
            fs::write(path(name), content).unwrap();
        }
        fs::set_permissions(path("pid"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("pid", path("link")).unwrap();
        let facts = read(folder.path(), [], &[&path("log")]);
        for (item, value) in [
            ("pid", "a number of 3 bytes"),
            ("pid mode", "640"),
            ("sub/state", "a state of 8 bytes"),
            ("link", "a link to pid"),
            ("log", "a file"),
            ("e", "an empty file of 0 bytes"),
            ("sub", "a directory"),
        ] {
            assert_eq!(facts.get(item), Some(value), "{item}");
        }
        fs::write(path("stray"), "").unwrap();
        let more = facts.changes(&read(folder.path(), [], &[&path("log")]));
        assert!(more.iter().all(|change| change.item.starts_with("stray")) && more.len() == 3);
    }
}
