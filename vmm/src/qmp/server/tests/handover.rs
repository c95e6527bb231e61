//! Tests of what an update preserves.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::*;

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
