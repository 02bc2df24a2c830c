NAME = "a module beside the model"
