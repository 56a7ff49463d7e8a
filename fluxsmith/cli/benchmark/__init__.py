"""How fast training and sampling are: beside diffusers, beside the lesson, beside the machine."""
