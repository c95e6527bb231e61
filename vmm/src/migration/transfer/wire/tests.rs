use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::message::Offer;
use super::*;

/// Longer than any test here takes.
const LONG: Duration = Duration::from_secs(30);

fn soon() -> Instant {
    Instant::now() + LONG
}

fn pair() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Connection::new(ours.into()).unwrap(), theirs)
}

fn offer(names: &[&str]) -> Message {
    let descriptors = names.iter().map(|name| (*name).to_owned()).collect();
    Message::Offer(Offer { deadline_ms: 1, msr_choice: Some(2), descriptors })
}

fn frame(message: &Message) -> Vec<u8> {
    let mut body = Vec::new();
    ciborium::into_writer(message, &mut body).unwrap();
    ENVELOPE.seal(&body).0
}

/// Returns the error of a peer that sends `bytes` and then hangs up.
fn error_of(bytes: &[u8]) -> WireError {
    let (mut ours, mut theirs) = pair();
    theirs.write_all(bytes).unwrap();
    theirs.shutdown(Shutdown::Both).unwrap();
    ours.receive("a message", soon()).unwrap_err()
}

#[test]
fn messages_arrive_with_their_descriptors() {
    let (mut ours, theirs) = pair();
    let mut theirs = Connection::new(theirs.into()).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(7).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut fds = CrossingFds::default();
    fds.add("file", file.as_fd());
    fds.add("null", null.as_fd());
    theirs.send(&offer(&["file", "null"]), &fds, soon()).unwrap();
    theirs.send(&Message::Built, &CrossingFds::default(), soon()).unwrap();
    let Frame { message, mut fds } = ours.receive("Offer", soon()).unwrap();
    assert_eq!(message, offer(&["file", "null"]));
    assert_eq!(std::fs::File::from(fds.take("file").unwrap()).metadata().unwrap().len(), 7);
    assert!(fds.take("file").is_none());
    assert_eq!(fds.leftover(), ["null"]);
    assert_eq!(ours.receive("Built", soon()).unwrap().message, Message::Built);
}

#[test]
fn message_may_arrive_byte_by_byte() {
    let (mut ours, mut theirs) = pair();
    let bytes = frame(&offer(&[]));
    let (last, first) = bytes.split_last().unwrap();
    for byte in first {
        theirs.write_all(&[*byte]).unwrap();
        assert!(ours.try_receive("a message").unwrap().is_none());
    }
    theirs.write_all(&[*last]).unwrap();
    assert_eq!(ours.try_receive("a message").unwrap().unwrap().message, offer(&[]));
}

#[test]
fn every_truncation_is_noticed() {
    let bytes = frame(&offer(&[]));
    assert!(matches!(error_of(&[]), WireError::Closed("a message")));
    for length in 1..bytes.len() {
        let error = error_of(&bytes[..length]);
        assert!(matches!(error, WireError::Truncated { .. }), "length {length}: {error}");
    }
}

#[test]
fn foreign_damaged_and_overlong_frames_are_refused_by_name() {
    let good = frame(&Message::Built);
    let change = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        error_of(&bytes).to_string()
    };
    let huge = [&good[..16], &(MAX_BYTES + 1).to_le_bytes(), &good[24..]].concat();
    let other = ENVELOPE.seal(&[0x61, b'X']).0;
    let trailing = ENVELOPE.seal(&[&good[ENVELOPE_HEADER..], &[0]].concat()).0;
    let deep = ENVELOPE.seal(&[0x81; 1000]).0;
    let mut texts = vec![change(0, b'X'), change(8, 9), change(24, !good[24])];
    texts.extend([huge, other, trailing].map(|bytes| error_of(&bytes).to_string()));
    assert!(matches!(error_of(&deep), WireError::Decode(_)));
    insta::assert_debug_snapshot!(texts);
}

#[test]
fn wrong_number_of_descriptors_is_noticed() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let received = |names: &[&str], sent: usize| {
        let (mut ours, theirs) = pair();
        let theirs = Connection::new(theirs.into()).unwrap();
        let numbers = vec![null.as_raw_fd(); sent];
        theirs.send_bytes(&frame(&offer(names)), &numbers, "an offer", soon()).unwrap();
        ours.receive("an offer", soon()).map(drop)
    };
    received(&["a", "b"], 2).unwrap();
    for (names, sent) in [(&["a"] as &[_], 0), (&["a"], 2), (&[], 1)] {
        assert!(matches!(received(names, sent), Err(WireError::Descriptors { .. })));
    }
    assert!(matches!(received(&["a", "a"], 2), Err(WireError::Twice(_))));
    assert!(matches!(received(&["a"], 200), Err(WireError::TooManyDescriptors(200))));
}

#[test]
fn silent_and_slow_peers_meet_the_deadline() {
    let (mut ours, mut theirs) = pair();
    let short = || Instant::now() + Duration::from_millis(20);
    assert!(matches!(ours.receive("Built", short()), Err(WireError::Deadline("Built"))));
    // A peer that sends a little, and then nothing.
    theirs.write_all(&frame(&Message::Built)[..20]).unwrap();
    assert!(matches!(ours.receive("Built", short()), Err(WireError::Deadline("Built"))));
    // A peer that reads nothing.
    let text = Message::Refused("x".repeat(MAX_BYTES as usize / 2));
    let sent = (0..100).find_map(|_| ours.send(&text, &CrossingFds::default(), short()).err());
    assert!(matches!(sent, Some(WireError::Unread("Refused"))), "{sent:?}");
}

#[test]
fn peer_that_left_is_an_error_not_a_signal() {
    let (mut ours, theirs) = pair();
    drop(theirs);
    let error = ours.send(&Message::Built, &CrossingFds::default(), soon()).unwrap_err();
    assert!(matches!(error, WireError::Left("Built")), "{error}");
    // One that has said why.
    let (mut ours, mut theirs) = pair();
    theirs.write_all(&frame(&Message::Refused("why".to_owned()))).unwrap();
    drop(theirs);
    let error = ours.send(&Message::Built, &CrossingFds::default(), soon()).unwrap_err();
    assert!(matches!(error, WireError::Refused(why) if why == "why"));
}

#[test]
fn refusal_is_told_from_an_unexpected_message() {
    let frame = |message| Frame { message, fds: ReceivedFds::default() };
    let refused = frame(Message::Refused("why".to_owned())).unexpected("Built");
    assert_eq!(refused.to_string(), "the other VMM refused: why");
    let other = frame(Message::Built).unexpected("Offer");
    assert_eq!(other.to_string(), "the other VMM sent Built instead of Offer");
}
