use kvm_bindings::{kvm_msr_entry, kvm_xcrs};

use super::*;

/// A structure of which every bit is set.
fn ones<T>() -> Value {
    Value::Bytes(vec![0xff; size_of::<T>()])
}

/// A LAPIC of which every bit is set, but for one of the timer's current count.
fn lapic() -> Value {
    const CURRENT_COUNT: usize = 0x390;
    let mut registers = vec![0xff; size_of::<kvm_lapic_state>()];
    registers[CURRENT_COUNT] = 0xfe;
    Value::Bytes(registers)
}

/// A state with what the mistakes change, as different from a new machine as can be.
fn state(section: &str) -> Value {
    let fields = match section {
        "platform" => vec![
            ("pic_slave", ones::<kvm_irqchip>()),
            ("ioapic", ones::<kvm_irqchip>()),
            ("pit", ones::<kvm_pit_state2>()),
            ("clock", ones::<kvm_clock_data>()),
        ],
        "devices" => {
            let registers = [
                "baud_divisor_low",
                "baud_divisor_high",
                "interrupt_enable",
                "interrupt_identification",
                "line_control",
                "line_status",
                "modem_control",
                "modem_status",
                "scratch",
            ];
            let buffers = ["in_buffer", "pending_output"].map(|name| (name, ones::<u64>()));
            let fields = registers.map(|name| (name, Value::from(0xff))).into_iter();
            vec![("serial", map(fields.chain(buffers))), ("test_port", map([]))]
        }
        "board" => {
            let ahead = Value::serialized(&Some((5_i64, 5_u32))).unwrap();
            let clock = [("registers", ones::<[u8; 128]>()), ("ahead", ahead)];
            vec![("rtc", map(clock)), ("power", map([("enabled", 0xff.into())]))]
        }
        "virtio-rng" => {
            let queue = map([("next_available", 7.into()), ("next_used", 7.into())]);
            let table = Value::serialized(&vec![[7_u32; 4]; 2]).unwrap();
            let common = map([("status", 15.into()), ("features", 1.into())]);
            vec![
                ("msix", map([("table", table)])),
                ("common", common),
                ("queues", Value::Array(vec![queue; 2])),
            ]
        }
        _ => vec![
            ("mp_state", ones::<kvm_mp_state>()),
            ("xcrs", ones::<kvm_xcrs>()),
            ("xsave", Value::Bytes(vec![0xff; 4096])),
            ("debug_regs", ones::<kvm_debugregs>()),
            ("lapic", lapic()),
            ("msrs", Value::Array(vec![ones::<kvm_msr_entry>(); 4])),
            ("tsc_offset", u64::MAX.into()),
            ("events", ones::<kvm_vcpu_events>()),
            (
                "cpuid",
                Value::serialized(&[kvm_cpuid_entry2 {
                    function: 1,
                    ecx: u32::MAX,
                    ..Default::default()
                }])
                .unwrap(),
            ),
        ],
    };
    map(fields)
}

fn map(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value::Map(fields.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

/// The fields of `section` that `mistake` changes.
fn changed(section: &str, mistake: fn(&mut Value)) -> Vec<String> {
    let (before, mut after) = (state(section), state(section));
    mistake(&mut after);
    let fields = before.as_map().unwrap().iter().zip(after.as_map().unwrap());
    let changed = fields.filter(|(before, after)| before != after);
    changed.map(|((name, _), _)| name.as_text().unwrap().to_owned()).collect()
}

#[test]
fn every_mistake_changes_its_field_and_no_other() {
    let changed: Vec<_> = MISTAKES
        .iter()
        .map(|(bug, of, mistake)| {
            let section = of.split('.').next().unwrap();
            format!("{}: {of}: {}", bug.name(), changed(section, *mistake).join(", "))
        })
        .collect();
    insta::assert_debug_snapshot!(changed);
}

#[test]
fn a_mistake_is_made_in_its_sections_only() {
    assert!(is_of("vcpu.0", "vcpu") && is_of("vcpu.12", "vcpu"));
    assert!(is_of("vcpu.1", "vcpu.1"));
    assert!(!is_of("vcpu.12", "vcpu.1") && !is_of("vcpus.0", "vcpu"));
}

#[test]
#[should_panic(expected = "no field xcrs")]
fn a_mistake_without_its_field_panics() {
    field(&mut map([]), "xcrs");
}
