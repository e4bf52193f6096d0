//! Loopback ports for processes that are told where to listen.
//!
//! The process binds its port itself, a while after it was chosen. Until then nothing else may get
//! it: the range lies below the kernel's ephemeral ports, so no outgoing connection takes one, and
//! an abstract Unix socket by the port's number keeps all nodes of this machine from choosing it
//! again. Such a name belongs to the same network namespace as the port and is gone with its holder,
//! however that ends.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};

use skein_core::Random;

/// The first port and how many there are.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;
/// Ports that are tried before giving up.
const TRIES: usize = 2_000;

/// A port that nobody else is given while this lives.
#[derive(Debug)]
pub(crate) struct Reserved {
    pub(crate) port: u16,
    _name: UnixDatagram,
}

impl Reserved {
    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

/// Finds a free port; `None` when all that were tried are taken.
pub(crate) fn reserve(rng: &mut impl Random) -> Option<Reserved> {
    (0..TRIES).find_map(|_| try_reserve(FIRST + rng.below(usize::from(COUNT)) as u16))
}

/// Keeps a port whose process may listen already.
pub(crate) fn reserve_in_use(port: u16) -> Option<Reserved> {
    let name = UnixAddr::from_abstract_name(format!("skein-port-{port}")).ok()?;
    Some(Reserved { port, _name: UnixDatagram::bind_addr(&name).ok()? })
}

fn try_reserve(port: u16) -> Option<Reserved> {
    let reserved = reserve_in_use(port)?;
    // Somebody who is not of Skein may listen there. Bound to any address, as the process may do it.
    drop(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).ok()?);
    Some(reserved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_cluster::entropy::Entropy;

    #[test]
    fn a_port_is_given_once_until_it_is_given_back_and_can_be_bound() {
        let reserved = reserve(&mut Entropy::default()).unwrap();
        assert!(try_reserve(reserved.port).is_none());
        drop(TcpListener::bind(reserved.address()).unwrap());
        let port = reserved.port;
        drop(reserved);
        assert!(try_reserve(port).is_some());
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_given() {
        let held = std::iter::repeat_with(|| reserve(&mut Entropy::default()).unwrap())
            .find_map(|reserved| {
                let port = reserved.port;
                drop(reserved);
                TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
            })
            .unwrap();
        assert!(try_reserve(held.local_addr().unwrap().port()).is_none());
    }
}
