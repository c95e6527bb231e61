//! Tests the server on real sockets, with a stand-in for the VMM.

mod clients;
mod handover;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rstest::{fixture, rstest};
use serde_json::json;
use tempfile::TempDir;

use super::*;

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
        r#"{"execute": "migrate-set-parameters", "arguments": {"max-postcopy-bandwidth": 1}}"#,
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
