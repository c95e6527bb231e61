//! The XSAVE area without what differs between two reads of the same state.

use std::arch::x86_64::__cpuid_count;
use std::ops::Range;

/// The header's `XSTATE_BV` (SDM volume 1, section "Layout of the XSAVE Area").
const IN_USE: Range<usize> = 512..520;
const FCW: Range<usize> = 0..2;
const MXCSR: Range<usize> = 24..28;
/// The rest of the x87 state: the environment, and the registers behind MXCSR and its mask.
const X87: [Range<usize>; 2] = [2..24, 32..160];
const XMM: Range<usize> = 160..416;
const CPUID_XSAVE: u32 = 0xd;

/// Marks components in their initial configuration as not in use. A CPU may report such a component
/// either way, and AMD's do: the same registers are in use before they are restored and not after.
pub(super) fn normalise(area: &mut [u8]) {
    let Some(in_use) = area.get(IN_USE) else { return };
    let mut in_use = u64::from_le_bytes(in_use.try_into().expect("8 bytes"));
    for component in 0..63 {
        if in_use >> component & 1 == 1 && is_initial(component, area) {
            in_use &= !(1 << component);
        }
    }
    area[IN_USE].copy_from_slice(&in_use.to_le_bytes());
}

fn is_initial(component: u32, area: &[u8]) -> bool {
    let zero = |range: Range<usize>| area.get(range).is_some_and(|b| b.iter().all(|b| *b == 0));
    match component {
        0 => area[FCW] == 0x37f_u16.to_le_bytes() && X87.into_iter().all(zero),
        1 => area[MXCSR] == 0x1f80_u32.to_le_bytes() && zero(XMM),
        _ => {
            let place = __cpuid_count(CPUID_XSAVE, component);
            let (size, offset) = (place.eax as usize, place.ebx as usize);
            size > 0 && zero(offset..offset + size)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(in_use: u64) -> Vec<u8> {
        let mut area = vec![0; 4096];
        area[FCW].copy_from_slice(&0x37f_u16.to_le_bytes());
        area[MXCSR].copy_from_slice(&0x1f80_u32.to_le_bytes());
        area[IN_USE].copy_from_slice(&in_use.to_le_bytes());
        area
    }

    fn in_use(mut area: Vec<u8>) -> u64 {
        normalise(&mut area);
        u64::from_le_bytes(area[IN_USE].try_into().unwrap())
    }

    #[test]
    fn initial_components_are_not_in_use() {
        assert_eq!(in_use(area(0)), 0);
        assert_eq!(in_use(area(3)), 0);
    }

    #[test]
    fn component_with_content_is_in_use() {
        for (at, component) in [(0, 0), (5, 0), (150, 0), (24, 1), (200, 1), (415, 1)] {
            let mut area = area(3);
            area[at] ^= 1;
            assert_eq!(in_use(area), 1 << component, "byte {at}");
        }
    }

    #[test]
    fn area_without_header_stays_as_it_is() {
        let mut short = vec![1; 100];
        normalise(&mut short);
        assert_eq!(short, [1; 100]);
    }
}
