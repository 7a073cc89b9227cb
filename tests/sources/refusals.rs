//! Servers that cannot be read: each reason has its own kind of error, because each has its
//! own remedy.

use crate::database::{Database, Place, on};
use caudal_model::{ChangeBuffer, Class, Error, Kind, Position, Severity};
use caudal_sources::{SourceOptions, TlsMode};
use caudal_tests::databases;

mod on_postgres {
    use super::*;
    on!(postgres: each_refusal_has_its_kind, certificates_are_verified);
}

mod on_mysql {
    use super::*;
    on!(mysql and mariadb: each_refusal_has_its_kind, lost_positions_are_told);
}

async fn refusal(db: &Database, options: SourceOptions) -> Error {
    db.open(options).check().await.unwrap_err()
}

async fn each_refusal_has_its_kind(place: Place) {
    let db = place.database(&[]).await;
    let error = refusal(
        &db,
        SourceOptions {
            password: "hunter2-is-wrong".to_owned().into(),
            ..db.options()
        },
    )
    .await;
    let told = (error.class(), error.kind());
    assert_eq!(told, (Class::Fatal, Kind::Prerequisite), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    // Nothing listens there, which may be over soon.
    let error = refusal(
        &db,
        SourceOptions {
            port: 1,
            ..db.options()
        },
    )
    .await;
    assert_eq!(error.class(), Class::Retryable, "{error}");
}

async fn certificates_are_verified(place: Place) {
    let db = place
        .database(&["CREATE TABLE t (id int PRIMARY KEY)"])
        .await;
    let mut options = db.options();
    options.tls.mode = TlsMode::VerifyFull;
    options.tls.ca_file = Some(db.source.address().ca_file.clone());
    let findings = db.open(options.clone()).check().await.unwrap();
    let replicates = findings
        .iter()
        .find(|f| f.check == "replication_connection");
    assert_eq!(replicates.unwrap().severity, Severity::Ok, "{findings:?}");
    // The system's authorities did not sign it.
    options.tls.ca_file = None;
    let error = refusal(&db, options).await;
    assert_eq!(error.kind(), Kind::Prerequisite, "{error}");
}

async fn lost_positions_are_told(place: Place) {
    let db = place.database(&[]).await;
    let source = db.open(db.options());
    let never = match place.kind() {
        databases::Kind::Mariadb => "0-1-99999999",
        _ => "aaaaaaaa-71ca-11e1-9e33-c80aa9429562:1-5",
    };
    let error = match source.open_tail(&Position::new(never), vec![]).await {
        Err(e) => e,
        Ok(mut tail) => tail.next(&mut ChangeBuffer::new(1, 1)).await.unwrap_err(),
    };
    assert_eq!(error.kind(), Kind::PositionLost, "{error:?}");
}
