"""A model behind HTTP: requests and answers, the application, and the server that it runs on."""
