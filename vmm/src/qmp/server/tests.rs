//! Tests the server on real sockets, with a stand-in for the VMM.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rstest::{fixture, rstest};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::qmp::{ConnectionState, MAX_OUTPUT, PAUSE_OUTPUT};

/// Keeps this crate's version out of the snapshots.
const VERSION: [(&str, &str); 1] =
    [(r#""major": \d+, "minor": \d+, "micro": \d+"#, r#""major": X, "minor": Y, "micro": Z"#)];

struct Bench {
    dir: TempDir,
    server: Server,
    /// Names of the commands that reached the VMM.
    carried_out: Vec<String>,
}

#[fixture]
fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::bind(&dir.path().join("qmp")).unwrap();
    Bench { dir, server, carried_out: Vec::new() }
}

struct Client(UnixStream);

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    /// Returns what has arrived so far.
    fn received(&mut self) -> String {
        let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            match self.0.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => all.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        String::from_utf8(all).unwrap()
    }

    fn is_disconnected(&mut self) -> bool {
        self.received();
        matches!(self.0.read(&mut [0]), Ok(0))
    }
}

impl Bench {
    fn connect(&mut self) -> Client {
        let stream = UnixStream::connect(self.dir.path().join("qmp")).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.settle();
        Client(stream)
    }

    fn connect_and_negotiate(&mut self) -> Client {
        let mut client = self.connect();
        client.send(r#"{"execute":"qmp_capabilities"}"#);
        self.settle();
        assert!(client.received().ends_with("{\"return\": {}}\r\n"));
        client
    }

    /// Runs one round of the main loop; false if there was nothing to do.
    fn turn(&mut self) -> bool {
        let interests: Vec<_> = self.server.interests().collect();
        let mut fds: Vec<_> = interests
            .iter()
            .map(|interest| {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::POLLIN, interest.read);
                flags.set(PollFlags::POLLOUT, interest.write);
                PollFd::new(interest.fd, flags)
            })
            .collect();
        poll(&mut fds, PollTimeout::ZERO).unwrap();
        let over = PollFlags::POLLHUP | PollFlags::POLLERR;
        let ready: Vec<_> = std::iter::zip(&interests, &fds)
            .map(|(interest, fd)| (interest.token, fd.revents().unwrap()))
            .filter(|(_, events)| !events.is_empty())
            .map(|(token, events)| {
                let readable = events.intersects(PollFlags::POLLIN | over);
                (token, readable, events.intersects(PollFlags::POLLOUT | over))
            })
            .collect();
        for (token, readable, writable) in &ready {
            self.server.ready(*token, *readable, *writable);
        }
        !ready.is_empty()
    }

    fn serve(&mut self) {
        while let Some(Request { client, command }) = self.server.next_request() {
            let command = serde_json::to_value(command).unwrap();
            let name = command["execute"].as_str().unwrap().to_owned();
            let result = match name.as_str() {
                "query-name" => Ok(json!({"name": "bench"})),
                "stop" => Err(QmpError::generic("it will not")),
                _ => Ok(json!({})),
            };
            self.carried_out.push(name);
            self.server.respond(client, result);
        }
    }

    /// Runs rounds until there is nothing to do; panics if the server spins.
    fn settle(&mut self) {
        self.serve();
        for _ in 0..10_000 {
            if !self.turn() {
                return;
            }
            self.serve();
        }
        panic!("the server does not become idle");
    }

    /// Sends `lines` one by one; returns the dialogue, starting with what the client received
    /// before.
    fn transcript(&mut self, client: &mut Client, lines: &[&str]) -> String {
        let mut text = String::new();
        for line in client.received().split_terminator("\r\n") {
            text += &format!("<- {line}\n");
        }
        for line in lines {
            client.send(line);
            client.send("\n");
            self.settle();
            text += &format!("-> {line}\n");
            for answer in client.received().split_terminator("\r\n") {
                text += &format!("<- {answer}\n");
            }
        }
        text
    }

    /// Simulates an update: restores a new server from the old one's state, on duplicated
    /// descriptors.
    fn replace(&mut self) {
        let mut encoded = Vec::new();
        ciborium::into_writer(&self.server.save(), &mut encoded).unwrap();
        let state: ServerState = ciborium::from_reader(&encoded[..]).unwrap();
        let mut fds: HashMap<_, _> = self
            .server
            .named_fds()
            .into_iter()
            .map(|(name, fd)| (name, fd.try_clone_to_owned().unwrap()))
            .collect();
        let new = Server::restore(state, |name| fds.remove(name)).unwrap();
        assert!(fds.is_empty(), "leaked descriptors: {fds:?}");
        // The old image does not run its destructors.
        std::mem::forget(std::mem::replace(&mut self.server, new));
        self.server.own_socket_file();
    }
}

#[rstest]
fn negotiation_comes_first(mut bench: Bench) {
    let mut client = bench.connect();
    let lines = [
        r#"{"execute": "query-name", "id": 1}"#,
        r#"{"execute": "no-such-command"}"#,
        r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}"#,
        r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["fast"]}}"#,
        r#"{"execute": "qmp_capabilities", "arguments": {"x": 1}}"#,
        r#"{"execute": "qmp_capabilities", "id": "ok"}"#,
        r#"{"execute": "query-name", "id": {"a": [null]}}"#,
        r#"{"execute": "qmp_capabilities", "id": 0}"#,
    ];
    let transcript = bench.transcript(&mut client, &lines);
    insta::with_settings!({filters => VERSION}, { insta::assert_snapshot!(transcript) });
}

#[rstest]
fn errors_are_worded_as_in_qemu(mut bench: Bench) {
    let mut client = bench.connect_and_negotiate();
    let lines = [
        r#"{"execute": "no-such-command", "id": 1}"#,
        r#"{"execute": "stop", "id": null}"#,
        r#"{"execute": "stop", "arguments": {"now": true}, "id": 3}"#,
        r#"{"execute": "pmemsave", "arguments": {"val": 0, "size": 4096}}"#,
        r#"{"execute": "pmemsave", "arguments": {"val": "0", "size": 4096, "filename": "f"}}"#,
        r#"{"execute": "migrate", "arguments": {"uri": ["file:x"]}}"#,
        r#"{"execute": "migrate-set-parameters", "arguments": {"mode": "cpr-magic"}}"#,
        r#"{"execute": "migrate-set-parameters", "arguments": {"max-bandwidth": 1}}"#,
        r#"{"exec-oob": "stop", "id": 4}"#,
        r#"{"execute": "stop", "control": 1, "id": 5}"#,
        r#"{"execute": 42, "id": 6}"#,
        r#"{"execute": "stop", "arguments": 1}"#,
        r#"{"id": 7}"#,
        r#"["execute", "stop"]"#,
        r#"'single quotes'"#,
        r#"{"execute": "stop" "id": 8}"#,
        r#"nonsense"#,
        r#"{"execute": "query-name", "id": 9}"#,
    ];
    insta::assert_snapshot!(bench.transcript(&mut client, &lines));
}

#[rstest]
fn server_answers_its_own_queries(mut bench: Bench) {
    let mut client = bench.connect_and_negotiate();
    let lines = [r#"{"execute": "query-version"}"#, r#"{"execute": "query-commands"}"#];
    let transcript = bench.transcript(&mut client, &lines);
    insta::with_settings!({filters => VERSION}, { insta::assert_snapshot!(transcript) });
    client.send(r#"{"execute": "query-qmp-schema"}"#);
    bench.settle();
    let answer: Value = serde_json::from_str(&client.received()).unwrap();
    assert_eq!(answer["return"], crate::qmp::schema());
    assert!(bench.carried_out.is_empty());
}

#[rstest]
fn events_go_only_to_negotiated_clients(mut bench: Bench) {
    let mut late = bench.connect();
    late.received();
    let mut client = bench.connect_and_negotiate();
    bench.server.broadcast(&Event::now("STOP", None));
    assert_eq!(late.received(), "");
    let event: Event = serde_json::from_str(&client.received()).unwrap();
    assert_eq!((event.event.as_str(), event.data), ("STOP", None));
}

#[rstest]
fn clients_take_turns_and_get_answers_in_order(mut bench: Bench) {
    let mut clients = [(); 3].map(|()| bench.connect_and_negotiate());
    for client in &mut clients {
        for id in 0..3 {
            client.send(json!({"execute": "cont", "id": id}).to_string());
        }
    }
    while bench.turn() {}
    let mut order = Vec::new();
    while let Some(request) = bench.server.next_request() {
        order.push(request.client.0);
        bench.server.respond(request.client, Ok(json!({})));
    }
    assert_eq!(order, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
    for client in &mut clients {
        let answers = (0..3).map(|id| format!("{{\"return\": {{}}, \"id\": {id}}}\r\n"));
        assert_eq!(client.received(), answers.collect::<String>());
    }
}

#[rstest]
fn client_has_one_request_in_flight(mut bench: Bench) {
    let mut client = bench.connect_and_negotiate();
    client.send(r#"{"execute":"stop"}{"execute":"cont"}"#);
    while bench.turn() {}
    let stop = bench.server.next_request().unwrap();
    assert_eq!(stop.command, Command::Stop);
    assert_eq!(bench.server.next_request(), None);
    bench.server.respond(stop.client, Ok(json!({})));
    // A second answer to one request is ignored.
    bench.server.respond(stop.client, Ok(json!({})));
    assert_eq!(bench.server.next_request().unwrap().command, Command::Cont);
    assert_eq!(client.received(), "{\"return\": {}}\r\n");
}

#[rstest]
fn flooding_client_does_not_block_others(mut bench: Bench) {
    let mut flood = bench.connect_and_negotiate();
    let mut other = bench.connect_and_negotiate();
    let garbage = "{\"execute\":\"query-commands\"}@\n".repeat(1000);
    for _ in 0..1000 {
        if flood.0.write_all(garbage.as_bytes()).is_err() {
            break;
        }
        bench.settle();
    }
    let state = bench.server.save();
    assert!(state.connections[0].pending_output.len() < PAUSE_OUTPUT + (16 << 10));
    assert!(state.connections[0].pending_input.len() <= 16 << 10);
    other.send(r#"{"execute":"query-name"}"#);
    bench.settle();
    assert_eq!(other.received(), "{\"return\": {\"name\": \"bench\"}}\r\n");
    // It is served again once it reads.
    let before = flood.received().len();
    bench.settle();
    assert!(before > 0 && !flood.received().is_empty());
}

#[rstest]
fn requests_after_a_long_answer_are_served_once_it_is_sent(mut bench: Bench) {
    let mut client = bench.connect_and_negotiate();
    bench.server.hold(Some(1));
    client.send(r#"{"execute":"query-name"}{"execute":"stop"}"#);
    assert!(bench.turn());
    let first = bench.server.next_request().unwrap();
    let long = json!({"name": "x".repeat(PAUSE_OUTPUT)});
    bench.server.respond(first.client, Ok(long));
    assert!(bench.server.next_request().is_none(), "its client has too much unread");
    bench.server.flush_published();
    assert!(client.received().len() > PAUSE_OUTPUT);
    // No more input arrives: polling now would wait forever.
    assert!(bench.server.is_due());
    assert!(bench.server.next_request().is_some());
    bench.server.hold(None);
    bench.settle();
    assert!(!bench.server.is_due());
}

#[rstest]
fn client_that_never_reads_events_is_disconnected(mut bench: Bench) {
    let mut idle = bench.connect_and_negotiate();
    let mut other = bench.connect_and_negotiate();
    let event = Event::now("STOP", Some(json!("x".repeat(1000))));
    for _ in 0..2 * MAX_OUTPUT / 1000 {
        bench.server.broadcast(&event);
        assert!(!other.received().is_empty());
    }
    bench.settle();
    assert!(idle.is_disconnected());
    assert!(!other.is_disconnected());
    assert_eq!(bench.server.clients.len(), 1);
}

#[rstest]
#[case::half_a_message(b"{\"execute\": \"st")]
#[case::binary(b"\x00\x01\xfe\xff\x80")]
#[case::other_protocol(b"GET / HTTP/1.1\r\n\r\n")]
#[case::huge(&[b'['; 300_000])]
fn garbage_does_not_affect_other_clients(mut bench: Bench, #[case] garbage: &[u8]) {
    let mut bad = bench.connect();
    bad.received();
    let mut good = bench.connect_and_negotiate();
    for chunk in garbage.chunks(4096) {
        bad.send(chunk);
        bench.settle();
    }
    good.send(r#"{"execute":"query-name"}"#);
    bench.settle();
    assert_eq!(good.received(), "{\"return\": {\"name\": \"bench\"}}\r\n");
    bad.received();
    // The bad client can recover.
    bad.send("\n{\"execute\":\"qmp_capabilities\"}");
    bad.send(b"\xff{\"execute\":\"qmp_capabilities\",\"id\":1}");
    bench.settle();
    assert!(bad.received().contains("\"id\": 1"));
}

#[rstest]
fn half_closed_client_gets_all_answers(mut bench: Bench) {
    let mut client = bench.connect();
    client.send(r#"{"execute":"qmp_capabilities"}{"execute":"cont","id":1}{"execute":"stop"#);
    client.0.shutdown(Shutdown::Write).unwrap();
    bench.settle();
    assert!(client.received().contains("{\"return\": {}, \"id\": 1}"));
    assert!(client.is_disconnected());
    assert!(bench.server.clients.is_empty());
}

#[rstest]
fn disconnected_client_is_dropped(mut bench: Bench) {
    let mut client = bench.connect_and_negotiate();
    client.send(r#"{"execute":"stop"}"#);
    while bench.turn() {}
    let request = bench.server.next_request().unwrap();
    drop(client);
    // With its request in flight it is not polled.
    assert!(!bench.turn());
    bench.server.respond(request.client, Ok(json!({})));
    bench.settle();
    assert!(bench.server.clients.is_empty());
}

#[rstest]
fn client_over_the_limit_evicts_the_longest_idle(mut bench: Bench) {
    let mut clients: Vec<_> = (0..=MAX_CLIENTS).map(|_| bench.connect()).collect();
    assert_eq!(bench.server.clients.len(), MAX_CLIENTS);
    assert!(clients[MAX_CLIENTS].received().starts_with("{\"QMP\""));
    assert!(clients[0].received().contains("idle the longest"));
    assert!(clients[0].is_disconnected() && !clients[1].is_disconnected());
}

#[rstest]
fn new_client_is_refused_if_all_wait_for_an_answer(mut bench: Bench) {
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| bench.connect_and_negotiate()).collect();
    clients.iter_mut().for_each(|client| client.send(r#"{"execute":"stop"}"#));
    while bench.turn() {}
    let requests: Vec<_> = std::iter::from_fn(|| bench.server.next_request()).collect();
    assert_eq!(requests.len(), MAX_CLIENTS);
    let stream = UnixStream::connect(bench.dir.path().join("qmp")).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut more = Client(stream);
    while bench.turn() {}
    assert!(more.received().contains("all wait for an answer"));
    assert!(more.is_disconnected());
    bench.server.respond(requests[0].client, Ok(json!({})));
    bench.connect_and_negotiate();
    assert_eq!(bench.server.clients.len(), MAX_CLIENTS);
}

/// All of it goes into the state of an update, which has a size limit.
#[rstest]
fn endless_messages_are_not_kept(mut bench: Bench) {
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| bench.connect_and_negotiate()).collect();
    let part = [b'x'; 64 << 10];
    for client in &mut clients {
        client.send(b"{\"execute\": \"");
        for _ in 0..10 {
            client.send(part);
            bench.settle();
        }
        assert!(client.received().contains("size limit exceeded"));
    }
    let state = bench.server.save();
    let kept = |c: &ConnectionState| c.pending_input.len() + c.pending_output.len();
    assert!(state.connections.iter().map(kept).sum::<usize>() <= MAX_STATE);
    assert!(state.connections.iter().all(|client| kept(client) < 300 << 10));
    bench.connect_and_negotiate();
}

#[rstest]
fn cancellation_is_seen_ahead_and_stays_queued(mut bench: Bench) {
    let mut client = bench.connect_and_negotiate();
    client.send(r#"{"execute":"stop"}{"execute":"cont"}{"execute":"migrate_"#);
    while bench.turn() {}
    let stop = bench.server.next_request().unwrap();
    assert!(!bench.server.wants_to_cancel(stop.client));
    bench.server.look_ahead(stop.client);
    assert!(!bench.server.wants_to_cancel(stop.client));
    client.send(r#"cancel","arguments":{"x":1}}{"execute":"migrate_"#);
    while bench.turn() {}
    assert!(!bench.server.wants_to_cancel(stop.client), "it would be refused");
    client.send(r#"cancel"}"#);
    while bench.turn() {}
    assert!(bench.server.wants_to_cancel(stop.client));
    assert!(!bench.server.wants_to_cancel(stop.client), "it is reported once");
    bench.replace();
    bench.server.respond(stop.client, Ok(json!({})));
    bench.settle();
    assert_eq!(bench.carried_out, ["cont", "migrate_cancel"]);
}

/// Looking ahead must not read without limit.
#[rstest]
fn look_ahead_is_bounded(mut bench: Bench) {
    let mut client = bench.connect_and_negotiate();
    client.send(r#"{"execute":"stop"}"#);
    while bench.turn() {}
    let stop = bench.server.next_request().unwrap();
    bench.server.look_ahead(stop.client);
    let more = r#"{"execute":"query-name"}"#.repeat(100);
    while client.0.write_all(more.as_bytes()).is_ok() {
        while bench.turn() {}
    }
    assert!(bench.server.save().connections[0].pending_input.len() <= 80 << 10);
}

#[rstest]
fn update_at_any_byte_loses_and_repeats_nothing(mut bench: Bench) {
    let stream = b"{\"execute\":\"cont\",\"id\":1}@ {\"execute\":\"stop\",\"id\":\"\xc3\xa9\"}\n\
        {@ {\"execute\":\"quit\"}\n{\"execute\":\"query-name\",\"id\":null}[]7 ";
    let mut client = bench.connect_and_negotiate();
    client.send(stream);
    bench.settle();
    let whole = client.received();
    let carried_out = std::mem::take(&mut bench.carried_out);
    assert_eq!(carried_out, ["cont", "stop", "query-name"]);
    for cut in 0..=stream.len() {
        for served in [true, false] {
            let (head, tail) = stream.split_at(cut);
            client.send(head);
            if served {
                bench.settle();
            } else {
                while bench.turn() {}
            }
            bench.replace();
            client.send(tail);
            bench.settle();
            assert_eq!(client.received(), whole, "cut at byte {cut}, served {served}");
            assert_eq!(std::mem::take(&mut bench.carried_out), carried_out);
        }
    }
}

#[rstest]
fn update_keeps_unsent_output(mut bench: Bench) {
    let mut client = bench.connect_and_negotiate();
    for number in 0..5000 {
        bench.server.broadcast(&Event::now("STOP", Some(json!({ "number": number }))));
        if number % 1000 == 0 {
            bench.replace();
        }
    }
    assert!(!bench.server.save().connections[0].pending_output.is_empty());
    let mut text = String::new();
    loop {
        let more = client.received();
        if more.is_empty() {
            break;
        }
        text += &more;
        bench.settle();
    }
    let numbers = text.lines().map(|line| {
        serde_json::from_str::<Event>(line).unwrap().data.unwrap()["number"].as_u64().unwrap()
    });
    assert!(numbers.eq(0..5000));
}

#[rstest]
fn new_process_answers_requests_in_flight(mut bench: Bench) {
    let mut client = bench.connect_and_negotiate();
    client.send(r#"{"execute":"migrate","arguments":{"uri":"file:x"},"id":null}"#);
    while bench.turn() {}
    let request = bench.server.next_request().unwrap();
    bench.replace();
    bench.server.respond(request.client, Ok(json!({})));
    assert_eq!(client.received(), "{\"return\": {}, \"id\": null}\r\n");
    // A new client does not get the number of an old one.
    bench.connect_and_negotiate();
    assert_eq!(bench.server.last_id, 2);
}

#[rstest]
fn missing_descriptor_is_named(mut bench: Bench) {
    let _client = bench.connect();
    let restored = Server::restore(bench.server.save(), |_| None);
    let message = restored.unwrap_err().to_string();
    assert_eq!(message, "cannot take over QMP: the descriptor 'qmp.listener' was not handed over");
}

#[rstest]
fn every_descriptor_is_close_on_exec(mut bench: Bench) {
    let _client = bench.connect();
    let fds = bench.server.named_fds();
    assert_eq!(fds.len(), 2);
    for (name, fd) in fds {
        let flags = FdFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC), "{name}");
    }
}

#[rstest]
fn failed_takeover_keeps_the_socket_file(mut bench: Bench) {
    let path = bench.server.path().unwrap().to_owned();
    let state = bench.server.save();
    let new = Server::restore(state, |_| {
        Some(bench.server.acceptor.as_ref()?.listener.as_fd().try_clone_to_owned().unwrap())
    });
    drop(new.unwrap());
    assert!(path.exists());
    bench.connect_and_negotiate();
}
