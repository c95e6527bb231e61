use rstest::rstest;
use serde_json::json;

use super::*;

fn parse(name: &str, arguments: Value) -> Result<Command, QmpError> {
    let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
    Command::from_parts(name, arguments)
}

fn file_channel(kind: &str) -> Value {
    json!({"channel-type": kind, "addr": {"transport": "file", "filename": "f", "offset": 0}})
}

#[rstest]
#[case("x", json!({}), "The command x has not been found")]
#[case("stop", json!({"x": 1}), "Parameter 'x' is unexpected")]
#[case("pmemsave", json!({"val": 0, "size": 1}), "Parameter 'filename' is missing")]
#[case("pmemsave", json!({"val": 0, "size": -1, "filename": "f"}), "Parameter 'size' expects uint64")]
#[case("migrate", json!({"uri": 5}), "Invalid parameter type for 'uri', expected: string")]
#[case("migrate", json!({"resume": "yes"}), "Invalid parameter type for 'resume', expected: boolean")]
#[case("migrate", json!({"blk": true}), "Parameter 'blk' is unexpected")]
#[case("migrate", json!({"channels": {}}), "Invalid parameter type for 'channels', expected: array")]
#[case("migrate", json!({"channels": [{"channel-type": "main"}]}), "Parameter 'channels[0].addr' is missing")]
#[case("migrate", json!({"channels": [{"channel-type": "main", "addr": {"transport": "x"}}]}),
    "Parameter 'channels[0].addr.transport' does not accept value 'x'")]
#[case("migrate", json!({"channels": [{"channel-type": "main",
    "addr": {"transport": "socket", "type": "inet", "host": "h", "port": "1", "to": 65536}}]}),
    "Parameter 'channels[0].addr.to' expects uint16")]
#[case("migrate", json!({"channels": [{"channel-type": "main",
    "addr": {"transport": "file", "filename": "f", "offset": 0, "host": "h"}}]}),
    "Parameter 'channels[0].addr.host' is unexpected")]
#[case("migrate-set-parameters", json!({"multifd-channels": 2}), "Parameter 'multifd-channels' is unexpected")]
#[case("migrate-set-parameters", json!({"mode": "cpr-magic"}), "Parameter 'mode' does not accept value 'cpr-magic'")]
#[case("migrate-set-parameters", json!({"cpr-exec-command": ["a", 1]}),
    "Invalid parameter type for 'cpr-exec-command[1]', expected: string")]
#[case("migrate-set-capabilities", json!({"capabilities": [{"capability": "xbzrle", "state": true}]}),
    "Parameter 'capabilities[0].capability' does not accept value 'xbzrle'")]
fn error_names_the_bad_argument(#[case] name: &str, #[case] arguments: Value, #[case] desc: &str) {
    assert_eq!(parse(name, arguments).unwrap_err().desc, desc);
}

#[rstest]
#[case(json!({}), "need either 'uri' or 'channels' argument")]
#[case(json!({"uri": "file:x", "channels": []}), "need either 'uri' or 'channels' argument")]
#[case(json!({"uri": "x"}), "unknown migration protocol: x")]
#[case(json!({"channels": []}), "need either 'uri' or 'channels' argument")]
#[case(json!({"channels": [file_channel("cpr")]}), "Channel list has no main entry")]
#[case(json!({"channels": [file_channel("main"), file_channel("main")]}),
    "Channel list has more than one main entry")]
fn migration_needs_exactly_one_address(#[case] arguments: Value, #[case] desc: &str) {
    for name in ["migrate", "migrate-incoming"] {
        let address = match parse(name, arguments.clone()).unwrap() {
            Command::Migrate(args) => args.address(),
            Command::MigrateIncoming(args) => args.address(),
            other => panic!("{other:?}"),
        };
        assert_eq!(address.unwrap_err().desc, desc);
    }
}

#[test]
fn uri_and_channel_give_the_same_address() {
    let by_uri = MigrateArgs { uri: Some("file:f".into()), ..Default::default() };
    let Command::Migrate(by_channel) =
        parse("migrate", json!({"channels": [file_channel("main")]})).unwrap()
    else {
        panic!("migrate");
    };
    assert_eq!(by_uri.address().unwrap(), by_channel.address().unwrap());
}

#[test]
fn command_serializes_to_a_request() {
    let stop = serde_json::to_value(Command::Stop).unwrap();
    assert_eq!(stop, json!({"execute": "stop"}));
    let set = Command::MigrateSetParameters(MigrationParameters {
        mode: Some(crate::migration::MigMode::CprExec),
        ..MigrationParameters::default()
    });
    let expected = json!({"execute": "migrate-set-parameters", "arguments": {"mode": "cpr-exec"}});
    assert_eq!(serde_json::to_value(set).unwrap(), expected);
}
