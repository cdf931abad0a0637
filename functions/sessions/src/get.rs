//! `GET …/sessions/{id}`

use std::marker::PhantomData;

use karta_shared::{
    App,
    http::{ApiResponse, Call, Cors, Error, Family, NoBody, NoQuery, Route, SessionPath, SessionResource},
};

#[derive(Debug)]
pub struct SessionsGet<F>(PhantomData<F>);

impl<F: Family> Route for SessionsGet<F> {
    const NAME: &'static str = if F::IN_PROJECT { "project-sessions-get" } else { "sessions-get" };
    const CORS: Option<Cors> = F::CORS;
    type Access = F::Read;
    type Path = SessionPath;
    type Query = NoQuery;
    type Body = NoBody;
    type Output = SessionResource;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<SessionResource>, Error> {
        ApiResponse::ok(&call.session(app).await?.into())
    }
}
