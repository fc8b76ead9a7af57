//! The application that is no HTTP: 16 bytes come, the same go back, and it closes.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::connect::OPAQUE;

/// How long a client may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Serves until it is killed.
pub fn serve(port: u16) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            tokio::spawn(tokio::time::timeout(LIMIT, async move {
                let mut bytes = [0; OPAQUE.len()];
                stream.read_exact(&mut bytes).await?;
                stream.write_all(&bytes).await
            }));
        }
    })
}
