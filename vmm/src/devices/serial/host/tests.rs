use std::io::Read;
use std::os::fd::IntoRawFd;

use super::*;

fn unix(dir: &std::path::Path) -> (SerialHost, PathBuf) {
    let path = dir.join("serial");
    let host = SerialHost::open(&SerialConfig::Unix(path.clone()), None, &mut |_| None).unwrap();
    (host, path)
}

#[test]
fn output_waits_for_a_client_that_does_not_read_and_arrives_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (mut host, path) = unix(dir.path());
    let mut client = UnixStream::connect(path).unwrap();
    host.accept(true);
    let sent: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
    host.write_all(&sent).unwrap();
    assert!(host.blocked_output_fd().is_some());
    let mut seen = Vec::new();
    let mut buffer = [0; 65536];
    while seen.len() < sent.len() {
        let length = client.read(&mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..length]);
        host.flush_pending();
    }
    assert!(seen == sent);
}

#[test]
fn client_that_leaves_while_the_guest_has_no_room_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (mut host, path) = unix(dir.path());
    let mut client = UnixStream::connect(&path).unwrap();
    host.accept(true);
    client.write_all(b"last words").unwrap();
    assert!(host.listener_fd(false).is_none());
    drop(client);
    host.write_all(b"without a client").unwrap();
    assert_eq!(host.receive(4), b"last");
    assert!(host.listener_fd(true).is_none() && host.listener_fd(false).is_some());
    host.accept(false);
    assert_eq!(host.receive(4), b" wor");
    let mut next = UnixStream::connect(&path).unwrap();
    host.accept(true);
    assert!(host.client_has_left());
    host.accept(false);
    next.write_all(b"hi").unwrap();
    assert_eq!(host.receive(16), b"hi");
}

#[test]
fn failed_accept_is_retried_without_polling() {
    let dir = tempfile::tempdir().unwrap();
    let (mut host, path) = unix(dir.path());
    host.accept_failed = true;
    assert!(host.listener_fd(true).is_none());
    let _client = UnixStream::connect(&path).unwrap();
    host.retry_accept(true);
    assert!(!host.accept_failed && host.input_fd().is_some());
}

/// A stdio, with the file that feeds its input and the file that reads its output.
fn stdio() -> (SerialHost, File, File) {
    let fixed = |fd: std::os::fd::OwnedFd| -> BorrowedFd<'static> {
        // SAFETY: given up and never closed.
        unsafe { BorrowedFd::borrow_raw(fd.into_raw_fd()) }
    };
    let (input, feed) = nix::unistd::pipe().unwrap();
    let (seen, output) = nix::unistd::pipe().unwrap();
    let stdio = Stdio { input: fixed(input), output: fixed(output), ended: false };
    (SerialHost::with(Kind::Stdio(stdio)), feed.into(), seen.into())
}

#[test]
fn input_that_is_not_read_stays_in_the_kernel() {
    let (mut host, mut feed, _seen) = stdio();
    assert!(host.receive(16).is_empty());
    feed.write_all(b"0123456789").unwrap();
    assert_eq!(host.receive(4), b"0123");
    let mut rest = [0; 6];
    nix::unistd::read(host.input_fd().unwrap(), &mut rest).unwrap();
    assert_eq!(&rest, b"456789");
    drop(feed);
    assert!(host.receive(16).is_empty() && host.input_fd().is_none());
}

#[test]
fn unreadable_input_is_not_polled_again() {
    let (mut host, _feed, _seen) = stdio();
    let directory = File::open("/").unwrap();
    let Kind::Stdio(stdio) = &mut host.kind else { unreachable!() };
    // SAFETY: never closed.
    stdio.input = unsafe { BorrowedFd::borrow_raw(directory.into_raw_fd()) };
    assert!(host.receive(16).is_empty());
    assert!(host.input_fd().is_none());
}

#[test]
fn slow_stdout_reader_does_not_block_the_guest() {
    let (mut host, _feed, mut seen) = stdio();
    let sent: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
    host.write_all(&sent).unwrap();
    assert!(host.blocked_output_fd().is_some());
    let mut read = Vec::new();
    let mut buffer = [0; 65536];
    while read.len() < sent.len() {
        let length = seen.read(&mut buffer).unwrap();
        read.extend_from_slice(&buffer[..length]);
        host.flush_pending();
    }
    assert!(read == sent && host.blocked_output_fd().is_none());
    drop(seen);
    host.write_all(b"without a client").unwrap();
    assert!(host.pending().is_empty());
}

#[test]
fn drain_waits_for_the_reader_for_a_limited_time() {
    let (mut host, _feed, mut seen) = stdio();
    host.write_all(&[b'x'; 100_000]).unwrap();
    host.drain(Duration::from_millis(1));
    assert!(!host.pending().is_empty());
    let reader = std::thread::spawn(move || {
        seen.read_exact(&mut [0; 100_000]).unwrap();
    });
    host.drain(Duration::from_secs(60));
    reader.join().unwrap();
    assert!(host.pending().is_empty());
}

#[test]
fn rejects_files_that_can_block_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [fifo, "/dev/null".into(), dir.path().to_owned()] {
        let opened = SerialHost::open(&SerialConfig::File(path), None, &mut |_| None);
        assert!(matches!(opened, Err(HostError::NotRegular(_))));
    }
    let file = SerialConfig::File(dir.path().join("file"));
    let mut host = SerialHost::open(&file, None, &mut |_| None).unwrap();
    host.write_all(b"output").unwrap();
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"output");
}

#[test]
fn output_without_a_client_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (mut host, _) = unix(dir.path());
    host.write_all(b"without a client").unwrap();
    assert!(host.pending().is_empty());
}

#[test]
fn client_that_leaves_can_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (mut host, path) = unix(dir.path());
    drop(UnixStream::connect(&path).unwrap());
    host.accept(true);
    assert!(host.listener_fd(true).is_none());
    assert!(host.receive(16).is_empty());
    assert!(host.listener_fd(true).is_some());
}
