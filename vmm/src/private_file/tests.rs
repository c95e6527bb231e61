use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

fn refusal(path: &Path) -> String {
    PrivateFile::open(path.to_owned(), Switch::Off).unwrap_err().to_string()
}

fn write(path: &Path, follow: Switch) -> Result<(), PrivateFileError> {
    let mut file = PrivateFile::open(path.to_owned(), follow)?;
    file.clear_target()?;
    file.file().write_all(b"new")?;
    file.put_in_place()?;
    file.keep();
    Ok(())
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn open_changes_nothing_at_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    drop(PrivateFile::open(path.clone(), Switch::Off).unwrap());
    assert_eq!(files(dir.path()), 0);
    std::fs::write(&path, "old").unwrap();
    let file = PrivateFile::open(path.clone(), Switch::Off).unwrap();
    assert_eq!((std::fs::read(&path).unwrap(), files(dir.path())), (b"old".to_vec(), 1));
    drop(file);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
}

#[test]
fn existing_file_is_replaced_by_a_private_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "much longer").unwrap();
    write(&path, Switch::Off).unwrap();
    assert_eq!((std::fs::read(&path).unwrap(), mode(&path)), (b"new".to_vec(), 0o600));
    assert_eq!(files(dir.path()), 1);
}

#[test]
fn drop_removes_its_own_file_and_no_later_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    for replaced in [false, true] {
        let mut file = PrivateFile::open(path.clone(), Switch::Off).unwrap();
        file.clear_target().unwrap();
        file.file().write_all(b"new").unwrap();
        file.put_in_place().unwrap();
        if replaced {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(dir.path().join("precious"), "precious").unwrap();
            symlink("precious", &path).unwrap();
        }
        drop(file);
        assert_eq!(path.is_symlink(), replaced);
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn follows_link_only_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let (path, end) = (dir.path().join("link"), dir.path().join("end"));
    std::fs::write(&end, "much longer").unwrap();
    symlink(&end, &path).unwrap();
    assert!(refusal(&path).contains("--follow-symlinks on"));
    let file = PrivateFile::open(path.clone(), Switch::On).unwrap();
    drop(file);
    assert_eq!(std::fs::read(&end).unwrap(), b"much longer");
    write(&path, Switch::On).unwrap();
    assert!(path.is_symlink());
    assert_eq!((std::fs::read(&end).unwrap(), mode(&end)), (b"new".to_vec(), 0o600));
}

#[test]
fn files_of_this_process_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = File::create(&path).unwrap();
    let expected = format!("this VMM itself has it open (descriptor {}): ", log.as_raw_fd());
    let refused = refusal(&path);
    assert!(refused.starts_with(&expected), "{refused}");
    let by_link = format!("/proc/self/fd/{}", log.as_raw_fd());
    let followed = PrivateFile::open(by_link.into(), Switch::On).unwrap_err().to_string();
    assert!(followed.starts_with(&expected), "{followed}");
    let program = std::env::current_exe().unwrap();
    assert!(refusal(&program).starts_with("it is the program"), "{}", refusal(&program));
}

#[test]
fn refuses_foreign_and_world_writable_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "old").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    insta::assert_snapshot!(refusal(&path), @"every user may write to it (mode 0666): remove it, or chmod o-w");
    if nix::unistd::geteuid().is_root() {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&path, Some(1234), None).unwrap();
        insta::assert_snapshot!(refusal(&path), @"it belongs to user 1234: remove it, or use another path");
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
}

#[test]
fn refuses_special_files_without_blocking() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    for path in [fifo.as_path(), Path::new("/dev/null")] {
        assert_eq!(refusal(path), "it is not a regular file");
    }
    assert_eq!(refusal(dir.path()), "Is a directory (os error 21)");
    assert_eq!(refusal(Path::new("")), "No such file or directory (os error 2)");
}

#[test]
fn overwrites_in_place_in_a_read_only_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "much longer").unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    let open = || {
        let target = Target::look(&path, Switch::Off).unwrap();
        PrivateFile::new(path.clone(), target, Err(Errno::EACCES)).unwrap()
    };
    drop(open());
    assert_eq!(std::fs::read(&path).unwrap(), b"much longer");
    let mut opened = open();
    opened.clear_target().unwrap();
    opened.file().write_all(b"new").unwrap();
    opened.put_in_place().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!((std::fs::metadata(&path).unwrap().ino(), mode(&path)), (inode, 0o600));
    drop(opened);
    assert_eq!(std::fs::read(&path).unwrap(), b"");
}
