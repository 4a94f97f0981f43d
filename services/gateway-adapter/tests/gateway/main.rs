//! The gateway through its own HTTP server, over a real nats-server; scheduler and agent are played by hand.

#[cfg(test)]
mod answers_come_whole_or_say_why;
#[cfg(test)]
mod answers_that_are_fetched_later;
#[cfg(test)]
mod clients_that_leave_or_dawdle;
#[cfg(test)]
mod clients_that_wait_are_told_and_kept;
#[cfg(test)]
mod errors_speak_the_routes_dialect;
#[cfg(test)]
mod every_route_goes_through_the_queue;
#[cfg(test)]
mod jobs_outlive_their_gateway;
#[cfg(test)]
mod keys_open_the_gateway;
#[cfg(test)]
mod leases_are_asked_of_the_leader;
#[cfg(test)]
mod requests_that_are_done_once;
#[cfg(test)]
mod requests_that_are_refused;
#[cfg(test)]
mod support;
#[cfg(test)]
mod the_endpoint_is_described;
#[cfg(test)]
mod the_fleet_is_shown_and_operated;
#[cfg(test)]
mod the_gateway_starts_stops_and_loses_nats;
#[cfg(test)]
mod upstream_reaches_what_else_an_engine_has;
