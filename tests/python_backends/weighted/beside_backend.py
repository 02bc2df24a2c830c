NAME = "a module beside the backend"
