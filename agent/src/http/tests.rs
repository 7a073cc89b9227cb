use super::*;
use crate::status::TableStatus;
use caudal_model::{Kind, TableName, TableProgress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn config(listen: &str) -> Config {
    let text = format!(
        "[stream]\nname = \"shop\"\nstate_dir = \"/tmp/shop\"\n[source]\nkind = \"mysql\"\n\
         host = \"db\"\nuser = \"caudal\"\n[tables]\ninclude = [\"shop.*\"]\n\
         [sink]\nurl = \"file:///lake\"\n[http]\nlisten = \"{listen}\"\n"
    );
    Config::parse(&text, "caudal.toml", []).unwrap()
}

async fn get(address: &str, path: &str) -> (u16, String) {
    let mut c = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    c.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    c.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

/// A port that was free a moment ago.
async fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}

#[tokio::test]
async fn every_path_answers_and_status_reads_it_back() {
    let address = free_address().await;
    let config = config(&address);
    let board = StatusBoard::new("shop", "mysql");
    let metrics = Metrics::local("shop");
    let shutdown = CancellationToken::new();
    start(&config, board.clone(), metrics, shutdown.clone())
        .await
        .unwrap();

    let (code, text) = get(&address, "/readyz").await;
    assert!(
        code == 503
            && text.contains(r#""ready":false,"state":"starting","reasons":[{"reason":"starting""#),
        "{text}"
    );
    assert_eq!(get(&address, "/healthz").await, (200, "ok\n".to_owned()));
    board.set_state(StreamState::Running);
    board.update_table(TableStatus::from(&TableProgress::pending(TableName::new(
        "shop", "t",
    ))));
    let well = r#"{"ready":true,"state":"running","reasons":[]}"#.to_owned();
    assert_eq!(get(&address, "/readyz").await, (200, well));
    let (code, text) = get(&address, "/metrics").await;
    assert!(
        code == 200 && text.contains("caudal_memory_bytes{stream=\"shop\"} 5"),
        "{text}"
    );
    let (code, text) = get(&address, "/").await;
    assert!(code == 200 && text.contains("fetch(\"status\""), "{text}");
    assert_eq!(get(&address, "/nothing").await.0, 404);
    assert_eq!(fetch_status(&address, "shop").await, Some(board.report()));
    assert_eq!(fetch_status(&address, "other").await, None);
    board.set_state(StreamState::Failed);
    assert_eq!(get(&address, "/healthz").await.0, 503);

    // A second agent on the same port goes on without its server.
    let metrics = Metrics::local("shop");
    start(&config, board, metrics, shutdown.clone())
        .await
        .unwrap();
    shutdown.cancel();
    while fetch_status(&address, "shop").await.is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_impossible_address_is_a_config_error() {
    let config = config("203.0.113.7:9464");
    let board = StatusBoard::new("shop", "mysql");
    let metrics = Metrics::local("shop");
    let e = start(&config, board, metrics, CancellationToken::new())
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::Config);
    assert!(
        e.to_string()
            .starts_with("caudal.toml:13:10: http.listen: cannot listen on"),
        "{e}"
    );
}
