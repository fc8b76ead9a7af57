//! A server that speaks first: it greets, then echoes. What a mesh must not hold back.

use tokio::io::{AsyncWriteExt, copy};

use super::{Server, serve};
use crate::exit::Failure;

/// Serves until it is told to stop.
pub async fn run(server: Server) -> Result<(), Failure> {
    let listener = serve::listen(server.listen).await?;
    let greeting: std::sync::Arc<str> = format!("hello {} {}\n", server.name, server.version_label).into();
    let slow = std::time::Duration::from_millis(server.slow);
    serve::accept(listener, serve::stop()?, server.grace(), move |mut stream, mut stop| {
        let greeting = greeting.clone();
        async move {
            tokio::time::sleep(slow).await;
            if stream.write_all(greeting.as_bytes()).await.is_err() {
                return;
            }
            let (mut read, mut write) = stream.split();
            tokio::select! {
                _ = async {
                    let _ = copy(&mut read, &mut write).await;
                    write.shutdown().await
                } => {}
                _ = stop.wait_for(|stopping| *stopping) => {}
            }
        }
    })
    .await;
    Ok(())
}
