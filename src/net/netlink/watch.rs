//! Being told of changes of addresses, by a socket of its own (`rtnetlink(7)`: `RTNLGRP_IPV4_IFADDR`,
//! `RTNLGRP_IPV6_IFADDR`).

use super::{Error, Netlink};
use futures_util::StreamExt;
use rtnetlink::MulticastGroup::{Ipv4Ifaddr, Ipv6Ifaddr};
use rtnetlink::new_multicast_connection;
use tokio::sync::watch;

impl Netlink {
    /// Gives a receiver that is marked as changed when an address came or went, or when the kernel told of more than
    /// could be read. It ends with this and all its clones.
    ///
    /// # Errors
    /// [`Error::Open`]: there is no such socket.
    pub async fn watch_addresses(&self) -> Result<watch::Receiver<()>, Error> {
        self.carry_out("watch addresses", async {
            let (connection, handle, mut told) =
                new_multicast_connection(&[Ipv4Ifaddr, Ipv6Ifaddr]).map_err(Error::Open)?;
            let (change, changes) = watch::channel(());
            tokio::spawn(connection);
            tokio::spawn(async move {
                // The connection ends with its handle.
                let _alive = handle;
                while told.next().await.is_some() && change.send(()).is_ok() {}
            });
            Ok(changes)
        })
        .await
    }
}
