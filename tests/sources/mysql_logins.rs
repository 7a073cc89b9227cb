//! Logins to MySQL and MariaDB: each way of TLS, with the password's hash known to the server
//! and not.

use crate::database::{Place, on, run_each};
use caudal_model::Kind;
use caudal_sources::TlsMode;
use caudal_sources::mysql::wire::Connection;

on!(mysql and mariadb: with_and_without_tls);

async fn with_and_without_tls(place: Place) {
    let db = place.database(&[]).await;
    let ca_file = db.source.address().ca_file.clone();
    let mut session = db.session().await;
    for (mode, ca_file) in [
        (TlsMode::Disable, None),
        (TlsMode::Prefer, None),
        (TlsMode::Require, None),
        (TlsMode::VerifyCa, Some(ca_file.clone())),
        (TlsMode::VerifyFull, Some(ca_file)),
    ] {
        // Forgets the password's hash, so that caching_sha2_password runs to its end.
        run_each(&mut session, &["FLUSH PRIVILEGES"]).await;
        for _ in 0..2 {
            let mut options = db.options();
            options.tls.mode = mode;
            options.tls.ca_file = ca_file.clone();
            let connection = Connection::open(&options).await.unwrap();
            assert_eq!(connection.encrypted(), mode != TlsMode::Disable, "{mode:?}");
        }
    }
    // The system's authorities did not sign it.
    let mut options = db.options();
    options.tls.mode = TlsMode::VerifyFull;
    let error = db.open(options).current_position().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Prerequisite, "{error:?}");
}
