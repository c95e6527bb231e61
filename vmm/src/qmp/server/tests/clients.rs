//! Tests of clients that flood, stall, leave or send garbage, and of too many of them.

use std::net::Shutdown;

use super::*;
use crate::qmp::{ConnectionState, MAX_OUTPUT, PAUSE_OUTPUT};

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
