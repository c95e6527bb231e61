//! Losing part of an encoded value: a number becomes 0, `true` becomes `false`, some bytes become
//! 0, an element of a list is left out.

use ciborium::Value;

use super::draw::Draw;

/// Lists of at least so many small numbers are treated as bytes.
const BYTES: usize = 8;

/// How many bytes are lost at once.
const WIDTHS: [usize; 4] = [1, 2, 4, 8];

/// Loses a value encoded in `data`. Returns which; `None` if all are already 0.
pub(super) fn lose_of_cbor(data: &mut Vec<u8>, draw: &mut Draw) -> Option<String> {
    let mut value: Value = ciborium::from_reader(&**data).ok()?;
    let what = lose(&mut value, draw)?;
    data.clear();
    ciborium::into_writer(&value, data).ok()?;
    Some(what)
}

fn lose(value: &mut Value, draw: &mut Draw) -> Option<String> {
    match value {
        Value::Map(entries) => draw.all_below(entries.len()).find_map(|at| {
            let (key, value) = &mut entries[at];
            let name = key.as_text().map_or_else(|| format!("{key:?}"), str::to_owned);
            Some(format!(".{name}{}", lose(value, draw)?))
        }),
        Value::Array(items) => match small_numbers(items) {
            Some(mut bytes) => {
                let what = lose_bytes(&mut bytes, draw)?;
                *items = bytes.into_iter().map(Value::from).collect();
                Some(what)
            }
            None => lose_of_list(items, draw),
        },
        Value::Bytes(bytes) => lose_bytes(bytes, draw),
        Value::Tag(_, inner) => lose(inner, draw),
        Value::Integer(number) if i128::from(*number) != 0 => {
            let was = i128::from(*number);
            *number = 0.into();
            Some(format!(" {was:#x} becomes 0"))
        }
        Value::Bool(is) if *is => {
            *is = false;
            Some(" true becomes false".to_owned())
        }
        _ => None,
    }
}

fn lose_of_list(items: &mut Vec<Value>, draw: &mut Draw) -> Option<String> {
    let structured = items.first().is_some_and(|item| item.is_map() || item.is_array());
    if structured && items.len() > 1 && draw.below(4) == 0 {
        let at = draw.below(items.len());
        items.remove(at);
        return Some(format!("[{at}] left out"));
    }
    draw.all_below(items.len())
        .find_map(|at| Some(format!("[{at}]{}", lose(&mut items[at], draw)?)))
}

fn small_numbers(items: &[Value]) -> Option<Vec<u8>> {
    let number = |item: &Value| u8::try_from(i128::from(item.as_integer()?)).ok();
    (items.len() >= BYTES).then(|| items.iter().map(number).collect())?
}

fn lose_bytes(bytes: &mut [u8], draw: &mut Draw) -> Option<String> {
    let width = WIDTHS[draw.below(WIDTHS.len())];
    let set = |at: &usize| bytes[*at..].iter().take(width).any(|byte| *byte != 0);
    let places: Vec<usize> = (0..bytes.len()).step_by(width).filter(set).collect();
    let at = *places.get(draw.below(places.len()))?;
    let end = (at + width).min(bytes.len());
    let was = format!("{:02x?}", &bytes[at..end]);
    bytes[at..end].fill(0);
    Some(format!(" bytes {at:#x} to {:#x}, {was}, become 0", end - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde::Serialize;

    #[derive(Serialize)]
    struct State {
        zero: u64,
        msrs: Vec<(u32, u64)>,
        lapic: Vec<u8>,
        #[serde(with = "serde_bytes")]
        area: Vec<u8>,
        runs: bool,
        name: &'static str,
    }

    fn encoded(msrs: Vec<(u32, u64)>, lapic: Vec<u8>, area: Vec<u8>, runs: bool) -> Vec<u8> {
        let state = State { zero: 0, msrs, lapic, area, runs, name: "name" };
        let mut data = Vec::new();
        ciborium::into_writer(&state, &mut data).unwrap();
        data
    }

    #[rstest]
    #[case(vec![(0x10, 0)], vec![], vec![], false, ".msrs[0][0] 0x10 becomes 0")]
    #[case(vec![], vec![0, 0, 0, 0, 0, 0, 0, 0, 9], vec![], false, ".lapic bytes 0x8 to 0x8, [09], become 0")]
    #[case(vec![], vec![], vec![0, 0, 0, 0, 0, 0, 0, 0, 9], false, ".area bytes 0x8 to 0x8, [09], become 0")]
    #[case(vec![], vec![], vec![], true, ".runs true becomes false")]
    fn the_only_value_that_is_set_is_lost(
        #[case] msrs: Vec<(u32, u64)>,
        #[case] lapic: Vec<u8>,
        #[case] area: Vec<u8>,
        #[case] runs: bool,
        #[case] what: &str,
    ) {
        for number in 0..20 {
            let mut data = encoded(msrs.clone(), lapic.clone(), area.clone(), runs);
            let before = data.clone();
            assert_eq!(lose_of_cbor(&mut data, &mut Draw::new(number)).as_deref(), Some(what));
            assert_ne!(data, before);
            assert_eq!(lose_of_cbor(&mut data, &mut Draw::new(number)), None);
        }
    }

    #[test]
    fn every_field_can_be_lost() {
        let lost: std::collections::BTreeSet<_> = (0..500)
            .filter_map(|number| {
                let mut data = encoded(vec![(1, 2), (3, 4)], vec![1; 8], vec![2; 8], true);
                let what = lose_of_cbor(&mut data, &mut Draw::new(number))?;
                Some(what.split([' ', '[']).next()?.to_owned())
            })
            .collect();
        assert_eq!(lost.into_iter().collect::<Vec<_>>(), [".area", ".lapic", ".msrs", ".runs"]);
    }

    #[test]
    fn an_element_may_be_left_out() {
        let left_out = (0..500).any(|number| {
            let mut data = encoded(vec![(1, 2), (3, 4)], vec![], vec![], false);
            let what = lose_of_cbor(&mut data, &mut Draw::new(number));
            what.is_some_and(|what| what == ".msrs[1] left out")
        });
        assert!(left_out);
    }

    #[test]
    fn invalid_cbor_is_unchanged() {
        let mut data = vec![0xff];
        assert_eq!(lose_of_cbor(&mut data, &mut Draw::new(1)), None);
        assert_eq!(data, [0xff]);
    }
}
