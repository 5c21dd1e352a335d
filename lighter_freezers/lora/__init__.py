"""LoRA ranks that change while a model trains, on the layers of PEFT."""
