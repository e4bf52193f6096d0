//! `/skein/v1/testbed/faults`: to be merged into the testbed's front, which checks the token.

use std::error::Error;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use http::StatusCode;
use skein_testbed::refusal;

use crate::engine::{ChaosError, Faults};
use crate::fault::InjectJson;

/// `GET`, `POST` and `DELETE /faults`, `DELETE /faults/{id}`.
pub fn router(faults: Faults) -> Router {
    Router::new()
        .route("/faults", get(list).post(inject).delete(heal_all))
        .route("/faults/{id}", delete(heal))
        .with_state(faults)
}

impl IntoResponse for ChaosError {
    fn into_response(self) -> Response {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        refusal(StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &text)
    }
}

async fn list(State(faults): State<Faults>) -> Response {
    Json(faults.list()).into_response()
}

async fn inject(State(faults): State<Faults>, body: Result<Json<InjectJson>, JsonRejection>) -> Response {
    match body {
        Ok(Json(body)) => answer(faults.inject(body).await),
        Err(error) => refusal(StatusCode::BAD_REQUEST, &error.body_text()),
    }
}

async fn heal(State(faults): State<Faults>, Path(id): Path<String>) -> Response {
    answer(faults.heal(&id).await)
}

async fn heal_all(State(faults): State<Faults>) -> Response {
    answer(faults.heal_all().await)
}

fn answer(result: Result<impl serde::Serialize, ChaosError>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => error.into_response(),
    }
}
