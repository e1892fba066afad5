//! Ports that nobody else is given.

use std::{
    net::{Ipv4Addr, TcpListener},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Below the range from which systems take the local ports of outgoing connections, which would otherwise steal one
/// between our look and the server's bind, or while a server is down and about to come back.
const FIRST: u16 = 18_000;
const COUNT: u16 = 12_000;

/// A port that is free now, and that this function has not given out before.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two processes at the same time start at different places.
    let offset = (process::id().wrapping_mul(97) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + offset.wrapping_add(step) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("none of {COUNT} ports is free");
}
