"""`predump dashboard`: migrations as they happen, on a page of this machine.

Text comes in by a feed (a broker, or the nodes' own event streams), is checked and kept on the
board, and goes out to browsers as server-sent events, a few times a second at most.

* board - what is known of every migration
* feed - where that comes from
* control - starting, ending and redirecting migrations
* choices - what can be chosen on the page, and what it says of each
* finished - runs that are over, from result files
* guard - who may ask for what
* web - the routes; page/ has what the browser gets
* serve - all of it together, from start to end
"""
