//! 6PN addresses (SPEC PN-1): `fdaa` 16 bits, network 32, host 32, machine 32, 16 free.
//!
//! Source: `networking/private-networking` of `superfly/docs`.

use std::net::Ipv6Addr;

use crate::id::{NetworkId, NodeNumber};

/// The first 16 bits of every 6PN address.
pub const PREFIX: u16 = 0xfdaa;

/// The address of a Machine: its /112 with the last group 2.
pub fn machine(network: NetworkId, host: NodeNumber, machine: u32) -> Ipv6Addr {
    let [n1, n2] = halves(network.0);
    let [h1, h2] = halves(host.0);
    let [m1, m2] = halves(machine);
    Ipv6Addr::new(PREFIX, n1, n2, h1, h2, m1, m2, 2)
}

/// The parts of a Machine's address: network, host and machine number; `None` outside `fdaa::/16`
/// or when it does not end in `:2`.
pub fn parts(address: Ipv6Addr) -> Option<(NetworkId, NodeNumber, u32)> {
    let [prefix, n1, n2, h1, h2, m1, m2, last] = address.segments();
    let join = |high: u16, low: u16| (u32::from(high) << 16) | u32::from(low);
    (prefix == PREFIX && last == 2).then(|| (NetworkId(join(n1, n2)), NodeNumber(join(h1, h2)), join(m1, m2)))
}

fn halves(value: u32) -> [u16; 2] {
    [(value >> 16) as u16, value as u16]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_address_and_its_parts_are_a_bijection(network: u32, host: u32, number: u32) {
            let address = machine(NetworkId(network), NodeNumber(host), number);
            prop_assert_eq!(parts(address), Some((NetworkId(network), NodeNumber(host), number)));
        }

        #[test]
        fn any_address_gives_parts_or_nothing(bits: u128) {
            if let Some((network, host, number)) = parts(Ipv6Addr::from(bits)) {
                prop_assert_eq!(machine(network, host, number), Ipv6Addr::from(bits));
            }
        }
    }
}
