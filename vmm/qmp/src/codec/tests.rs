use rstest::rstest;
use serde_json::{Value, json};

use super::*;

/// Returns everything in the stream, with errors as text.
fn drain(decoder: &mut Decoder) -> Vec<Result<Value, String>> {
    std::iter::from_fn(|| decoder.next_value())
        .map(|item| item.map_err(|error| error.to_string()))
        .collect()
}

fn decode(bytes: &[u8]) -> Vec<Result<Value, String>> {
    let mut decoder = Decoder::new();
    decoder.feed(bytes);
    drain(&mut decoder)
}

fn stray(byte: &str) -> Result<Value, String> {
    Err(format!("JSON parse error, stray '{byte}'"))
}

const STREAM: &[u8] = br#"{"a":[1,{"b":"}\"\\"}]}{"c":null}
 [] "s]" true 42 -1.5e3 {
  "d": "two
"#;

#[test]
fn messages_may_follow_each_other_directly() {
    let expected = [
        Ok(json!({"a": [1, {"b": "}\"\\"}]})),
        Ok(json!({"c": null})),
        Ok(json!([])),
        Ok(json!("s]")),
        Ok(json!(true)),
        Ok(json!(42)),
        Ok(json!(-1500.0)),
        stray("\\n"),
    ];
    assert_eq!(decode(STREAM), expected);
}

#[test]
fn a_stream_may_be_split_anywhere() {
    let whole = decode(STREAM);
    for cut in 0..=STREAM.len() {
        let (head, tail) = STREAM.split_at(cut);
        let mut decoder = Decoder::new();
        decoder.feed(head);
        let mut items = drain(&mut decoder);
        decoder.feed(tail);
        items.extend(drain(&mut decoder));
        assert_eq!(items, whole, "cut at byte {cut}");
    }
}

#[rstest]
#[case::valid(STREAM)]
#[case::garbage(b"@@ {\"a\":1}\n{\"b\": @ {\"x\":1}\n {\"c\":\"\xFF{\"d\":2}}]\n{\"e\":3}")]
fn another_decoder_can_resume_anywhere(#[case] stream: &[u8]) {
    let whole = decode(stream);
    for cut in 0..=stream.len() {
        for drained in [true, false] {
            let (head, tail) = stream.split_at(cut);
            let mut old = Decoder::new();
            old.feed(head);
            let mut items = if drained { drain(&mut old) } else { Vec::new() };
            let mut new = Decoder::resume(old.pending().to_vec(), old.skipping());
            new.feed(tail);
            items.extend(drain(&mut new));
            assert_eq!(items, whole, "cut at byte {cut}, drained {drained}");
        }
    }
}

#[rstest]
#[case::between_messages(b"@#!{\"a\":1}", &[stray("@"), Ok(json!({"a": 1}))])]
#[case::closing(b"}]\n[]", &[stray("}"), Ok(json!([]))])]
#[case::inside_skips_the_line(b"{\"a\": 'x', {}}{}\n[]", &[stray("\\'"), Ok(json!([]))])]
#[case::mismatch(b"{\"a\":[1}]}[\n[]", &[stray("}"), Ok(json!([]))])]
#[case::newline_in_a_string(b"{\"a\": \"x\n[]", &[stray("\\n"), Ok(json!([]))])]
#[case::ff_between(b"\xFF[]", &[stray("\\xff"), Ok(json!([]))])]
#[case::ff_inside(b"{\"a\":\xFF[]", &[stray("\\xff"), Ok(json!([]))])]
#[case::ff_in_a_string(b"{\"a\":\"\xFF[]", &[stray("\\xff"), Ok(json!([]))])]
#[case::ff_ends_skipping(b"{@ [] \xFF[]", &[stray("@"), Ok(json!([]))])]
#[case::ff_ends_a_number(b"4\xFF[]", &[Ok(json!(4)), stray("\\xff"), Ok(json!([]))])]
#[case::nul(b"\0\0\0\n[]", &[stray("\\x00"), Ok(json!([]))])]
fn decoder_recovers_after_garbage(
    #[case] bytes: &[u8],
    #[case] expected: &[Result<Value, String>],
) {
    assert_eq!(decode(bytes), expected);
}

#[rstest]
#[case::word(b"hello []")]
#[case::no_value(b"{\"a\"} []")]
#[case::bad_utf8(b"{\"a\":\"\x80\"} []")]
#[case::lone_surrogate(b"{\"a\":\"\\ud800\"} []")]
#[case::bad_escape(b"{\"a\":\"\\x\"} []")]
#[case::number_out_of_range(b"1e999 []")]
fn balanced_non_json_causes_one_error(#[case] bytes: &[u8]) {
    let items = decode(bytes);
    assert!(items[0].as_ref().unwrap_err().starts_with("JSON parse error, "), "{items:?}");
    assert_eq!(items[1..], [Ok(json!([]))]);
}

#[rstest]
#[case::string(b"\"", b'x')]
#[case::inside_brackets(b"{", b' ')]
#[case::number(b"1", b'0')]
fn endless_message_is_cut_off(#[case] begin: &[u8], #[case] filler: u8) {
    let mut decoder = Decoder::new();
    decoder.feed(begin);
    let mut items = Vec::new();
    for _ in 0..3 * MAX_MESSAGE / 4096 {
        decoder.feed(&[filler; 4096]);
        items.extend(drain(&mut decoder));
        assert!(decoder.pending().len() <= MAX_MESSAGE);
    }
    decoder.feed(b"\n[]");
    items.extend(drain(&mut decoder));
    let too_long = Err("JSON token size limit exceeded".to_owned());
    assert_eq!(items, [too_long, Ok(json!([]))]);
}

#[test]
fn longest_message_passes() {
    let text = format!("\"{}\"", "x".repeat(MAX_MESSAGE - 2));
    assert_eq!(decode(text.as_bytes()).len(), 1);
    assert!(decode(text.as_bytes())[0].is_ok());
}

#[test]
fn depth_is_bounded() {
    let nested = |depth| [b"[".repeat(depth), b"]".repeat(depth)].concat();
    assert!(matches!(&decode(&nested(MAX_DEPTH))[..], [Ok(_)]));
    let too_deep = Err("JSON nesting depth limit exceeded".to_owned());
    assert_eq!(decode(&nested(MAX_DEPTH + 1)), [too_deep]);
}

#[test]
fn decoder_recovers_from_any_two_bytes() {
    for pair in 0..=u16::MAX {
        for context in [&b""[..], b"{\"a\":", b"[\"", b"[\"\\"] {
            let mut decoder = Decoder::new();
            decoder.feed(context);
            decoder.feed(&pair.to_be_bytes());
            drain(&mut decoder);
            decoder.feed(b"\"\n");
            drain(&mut decoder);
            decoder.feed(b"\xFF{\"z\":0}");
            assert_eq!(drain(&mut decoder).last(), Some(&Ok(json!({"z": 0}))), "{pair:#06x}");
        }
    }
}

#[test]
fn encoded_line_is_formatted_as_in_qemu() {
    let line = encode(&json!({"return": {"a": [1, "é\n"], "b": {}}, "id": null})).unwrap();
    let expected = "{\"return\": {\"a\": [1, \"é\\n\"], \"b\": {}}, \"id\": null}\r\n";
    assert_eq!(String::from_utf8(line).unwrap(), expected);
}
